"""Networks without probability: integer images in, features at every generation step out."""

from genlab.nets.context import ImageContext, LabelContext
from genlab.nets.diagonal_bilstm import DiagonalBiLSTM
from genlab.nets.pixelcnn import PixelCNN
from genlab.nets.row_lstm import RowLSTM

__all__ = ["DiagonalBiLSTM", "ImageContext", "LabelContext", "PixelCNN", "RowLSTM"]
