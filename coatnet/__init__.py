"""CoAtNet: the model family, and how it learns."""

from coatnet.config import ModelConfig
from coatnet.model import CoAtNet
from coatnet.variants import create_model, list_models, model_config

__all__ = ["CoAtNet", "ModelConfig", "create_model", "list_models", "model_config"]
