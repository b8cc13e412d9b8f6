import warnings

# Raised by timm and open_clip when they are imported
warnings.filterwarnings('ignore', '.*torch.jit.script', FutureWarning)
__version__ = "0.1.0"
