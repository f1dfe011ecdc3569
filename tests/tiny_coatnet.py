"""A CoAtNet of every kind of block that is quick to build, compile and send to other processes."""

from coatnet import ModelConfig

TINY = ModelConfig(
    layout="CCT",
    stem_width=8,
    widths=(8, 16, 16),
    depths=(2, 2, 1),
    strides=(1, 2, 2),
    head_size=8,
    num_classes=5,
    pretrain_image_size_px=32,
)
