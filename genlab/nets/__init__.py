"""Networks without probability: integer images in, features at every generation step out."""

from genlab.nets.coder import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from genlab.nets.context import ImageContext, LabelContext
from genlab.nets.convnet import ConvNet
from genlab.nets.dcgan import DCGANDiscriminator, DCGANGenerator
from genlab.nets.diagonal_bilstm import DiagonalBiLSTM
from genlab.nets.gated_pixelcnn import GatedPixelCNN
from genlab.nets.pixel_transformer import PixelTransformer
from genlab.nets.pixelcnn import PixelCNN
from genlab.nets.pixelcnnpp import PixelCNNpp
from genlab.nets.pixelsnail import PixelSNAIL
from genlab.nets.resnet import ResNet
from genlab.nets.row_lstm import RowLSTM

__all__ = [
    "ConvDecoder",
    "ConvEncoder",
    "ConvNet",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "DiagonalBiLSTM",
    "GatedPixelCNN",
    "ImageContext",
    "LabelContext",
    "MLPDecoder",
    "MLPEncoder",
    "PixelCNN",
    "PixelCNNpp",
    "PixelSNAIL",
    "PixelTransformer",
    "ResNet",
    "RowLSTM",
]

# What a config may build, by the key that it builds it under; `build.py` builds nothing else.
CONFIGURABLE = {
    "net": (
        "ConvNet",
        "DiagonalBiLSTM",
        "GatedPixelCNN",
        "MLPEncoder",
        "PixelCNN",
        "PixelCNNpp",
        "PixelSNAIL",
        "PixelTransformer",
        "ResNet",
        "RowLSTM",
    ),
    "encoder": ("ConvEncoder", "MLPEncoder"),
    "decoder": ("ConvDecoder", "MLPDecoder"),
    "generator": ("DCGANGenerator",),
    "discriminator": ("DCGANDiscriminator",),
    "context": ("ImageContext", "LabelContext"),
}
