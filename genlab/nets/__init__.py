"""Networks without probability: integer images in, features at every generation step out."""

from genlab.nets.context import ImageContext, LabelContext
from genlab.nets.pixel_transformer import PixelTransformer
from genlab.nets.pixelcnn import PixelCNN

__all__ = ["ImageContext", "LabelContext", "PixelCNN", "PixelTransformer"]
