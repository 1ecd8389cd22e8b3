"""Networks without probability: integer images in, features at every generation step out."""

from genlab.nets.cached.base import bind
from genlab.nets.cached.diagonal_bilstm import DiagonalBiLSTMCache
from genlab.nets.cached.gated_pixelcnn import GatedPixelCNNCache
from genlab.nets.cached.made import MADECache
from genlab.nets.cached.pixel_transformer import PixelTransformerCache
from genlab.nets.cached.pixelcnn import PixelCNNCache
from genlab.nets.cached.pixelcnnpp import PixelCNNppCache
from genlab.nets.cached.pixelsnail import PixelSNAILCache
from genlab.nets.cached.row_lstm import RowLSTMCache
from genlab.nets.causal.diagonal_bilstm import DiagonalBiLSTM
from genlab.nets.causal.gated_pixelcnn import GatedPixelCNN
from genlab.nets.causal.made import MADE
from genlab.nets.causal.pixel_transformer import PixelTransformer
from genlab.nets.causal.pixelcnn import PixelCNN
from genlab.nets.causal.pixelcnnpp import PixelCNNpp
from genlab.nets.causal.pixelsnail import PixelSNAIL
from genlab.nets.causal.real_made import RealMADE
from genlab.nets.causal.row_lstm import RowLSTM
from genlab.nets.coders.conv import ConvDecoder, ConvEncoder
from genlab.nets.coders.convnet import ConvNet
from genlab.nets.coders.dcgan import DCGANDiscriminator, DCGANGenerator
from genlab.nets.coders.grid import GridDecoder, GridEncoder
from genlab.nets.coders.mlp import MLPDecoder, MLPEncoder
from genlab.nets.coders.resnet import ResNet
from genlab.nets.layers.context import ImageContext, LabelContext

__all__ = [
    "MADE",
    "ConvDecoder",
    "ConvEncoder",
    "ConvNet",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DiagonalBiLSTM",
    "GatedPixelCNN",
    "GridDecoder",
    "GridEncoder",
    "ImageContext",
    "LabelContext",
    "MLPDecoder",
    "MLPEncoder",
    "PixelCNN",
    "PixelCNNpp",
    "PixelSNAIL",
    "PixelTransformer",
    "RealMADE",
    "ResNet",
    "RowLSTM",
]

# A causal net by itself samples by recomputation. Here, and nowhere else, its class gets a cache. Whatever imports a
# net imports this package first, so there is no way around it.
bind(DiagonalBiLSTM, DiagonalBiLSTMCache)
bind(GatedPixelCNN, GatedPixelCNNCache)
bind(MADE, MADECache)
bind(PixelCNN, PixelCNNCache)
bind(PixelCNNpp, PixelCNNppCache)
bind(PixelSNAIL, PixelSNAILCache)
bind(PixelTransformer, PixelTransformerCache)
bind(RowLSTM, RowLSTMCache)
