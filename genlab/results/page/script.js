"use strict";
// The page of `genlab report`: sorting, filtering, curves, pictures. Text of runs is only ever set as text.

const { runs } = JSON.parse(document.getElementById("data").textContent);
const shown = runs.map(() => true); // by the filter
const $ = (id) => document.getElementById(id);

// ---- the table of runs

const table = $("runs");
const heads = [...table.tHead.rows[0].cells];

function sortBy(column) {
  const head = heads[column];
  const descending = head.getAttribute("aria-sort") === "ascending";
  heads.forEach((each) => each.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows];
  const missing = (cell) => cell.textContent === "-";
  rows.sort((first, second) => {
    const [a, b] = [first.cells[column], second.cells[column]];
    if (missing(a) !== missing(b)) return missing(a) ? 1 : -1; // at the end in both directions
    const numbers = a.dataset.number !== undefined && b.dataset.number !== undefined;
    const order = numbers ? a.dataset.number - b.dataset.number : a.textContent.localeCompare(b.textContent, "en", { numeric: true });
    return descending ? -order : order;
  });
  table.tBodies[0].append(...rows);
}

heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => sortBy(column)));

// A run is shown if every word of the filter is in its row; KEY=VALUE asks a column.
function matches(row, words) {
  const cells = [...row.cells].map((cell) => cell.textContent.toLowerCase());
  return words.every((word) => {
    const [key, value] = word.split("=");
    const column = value === undefined ? -1 : heads.findIndex((head) => head.textContent.toLowerCase() === key);
    return column < 0 ? cells.some((cell) => cell.includes(word)) : cells[column].startsWith(value);
  });
}

function filter() {
  const words = $("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of table.tBodies[0].rows) shown[row.dataset.run] = matches(row, words);
  for (const each of document.querySelectorAll("[data-run]")) each.hidden = !shown[each.dataset.run];
  const count = shown.filter(Boolean).length;
  $("count").textContent = count === runs.length ? "" : `${count} of ${runs.length} runs`;
  drawCharts();
  drawPictures();
}

$("filter").addEventListener("input", filter);

// ---- curves: one chart for each measure (unit and data), because others do not compare

const metrics = [...new Set(runs.flatMap((run) => Object.keys(run.curves).map((name) => name.replace(/^(train|valid)\//, ""))))];
const compared = new Set(runs.map((run) => run.compared));
metrics.sort((a, b) => compared.has(b) - compared.has(a));
const choose = (select, names) => select.append(...names.map((name) => new Option(name)));
choose($("metric"), metrics);

// Plotly reads a little HTML in its texts. These characters are shown as they are.
const plain = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

const BUTTONS = [["toImage", "zoom2d", "pan2d", "resetScale2d"]]; // some others of plotly send data to its makers

function trace(run, split, metric) {
  const points = run.curves[`${split}/${metric}`] || [];
  const valid = split === "valid";
  return {
    x: points.map((point) => point[0]), y: points.map((point) => point[1]),
    mode: valid || points.length < 2 ? "lines+markers" : "lines",
    line: { color: run.colour, width: valid ? 2 : 1, dash: valid ? "solid" : "dot" }, marker: { size: 5 },
    opacity: valid ? 1 : 0.7, showlegend: false,
    hovertemplate: `<b>${plain(run.name)}</b><br>${plain(run.label).replaceAll(", ", "<br>")}<br>${split}, step %{x}: %{y:.5g}<extra></extra>`,
  };
}

function drawCharts() {
  const metric = $("metric").value;
  const charts = $("charts");
  const visible = runs.filter((run, i) => shown[i]);
  const measures = [...new Set(visible.map((run) => run.measure))];
  charts.querySelectorAll(".chart").forEach((chart) => Plotly.purge(chart));
  charts.replaceChildren();
  for (const measure of measures) {
    const traces = visible.filter((run) => run.measure === measure).flatMap((run) => ["train", "valid"].map((split) => trace(run, split, metric)));
    const drawn = traces.filter((each) => each.x.length);
    if (!drawn.length) continue;
    const title = document.createElement("h3");
    title.textContent = `${metric} (runs measured in ${measure})`;
    const chart = document.createElement("div");
    chart.className = "chart";
    charts.append(title, chart);
    const layout = {
      margin: { l: 55, r: 15, t: 30, b: 45 }, hovermode: "closest", hoverlabel: { align: "left" },
      font: { family: "system-ui, sans-serif" },
      xaxis: { title: { text: "optimiser steps" }, rangemode: "tozero", gridcolor: "#e8ebee" },
      yaxis: { gridcolor: "#e8ebee", zeroline: false, range: late(drawn) },
    };
    Plotly.newPlot(chart, drawn, layout, { displaylogo: false, responsive: true, modeBarButtons: BUTTONS });
  }
  if (!charts.children.length) charts.textContent = "no curves";
}

// The range of all values but those of each curve's first quarter, which are often far from all others.
function late(traces) {
  const values = traces.flatMap(({ x, y }) => y.filter((_, i) => x[i] >= 0.25 * x[x.length - 1]));
  const [least, most] = values.reduce(([a, b], value) => [Math.min(a, value), Math.max(b, value)], [Infinity, -Infinity]);
  const margin = 0.05 * (most - least);
  return margin ? [least - margin, most + margin] : undefined;
}

$("metric").addEventListener("change", drawCharts);

// ---- pictures: every run shows its newest picture up to the chosen step

const kinds = [...new Set(runs.flatMap((run) => Object.keys(run.pictures)))];
choose($("kind"), kinds);
let steps = [];

function chooseKind() {
  const found = runs.flatMap((run) => (run.pictures[$("kind").value] || []).map(([step]) => step));
  steps = [...new Set(found)].sort((a, b) => a - b);
  $("step").max = Math.max(steps.length - 1, 0);
  $("step").value = $("step").max;
  drawPictures();
}

function drawPictures() {
  const step = steps[$("step").value];
  $("at").textContent = step === undefined ? "" : step.toLocaleString("en");
  for (const card of $("cards").children) {
    const pictures = runs[card.dataset.run].pictures[$("kind").value] || [];
    const picture = pictures.filter(([at]) => at <= step).pop() || pictures[0];
    card.hidden = !shown[card.dataset.run] || !picture;
    if (!picture) continue;
    card.querySelector("img").src = `data:image/png;base64,${picture[1]}`;
    card.querySelector("small").textContent = `step ${picture[0].toLocaleString("en")}`;
  }
}

$("kind").addEventListener("change", chooseKind);
$("step").addEventListener("input", drawPictures);
$("pictures").hidden = !kinds.length;

// ---- configs

const short = () => $("configs").classList.toggle("short", $("differences").checked);
$("differences").addEventListener("change", short);

short();
chooseKind();
filter();
