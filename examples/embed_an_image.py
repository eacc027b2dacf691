"""Embed images of different channels, and see what the encoder promises: names, not positions; no batch mates.

python examples/embed_an_image.py
python examples/embed_an_image.py --model CaicedoLab/MorphEm --output features.parquet
"""

import argparse

import numpy as np

import morphem
from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.synthetic import default_studies, generate_image
from morphem.encoder import Encoder
from morphem.normalizers import SelfNormalize


def untrained_encoder() -> Encoder:
    """Build a small encoder with random weights, so that the script needs no download."""
    backbone = VisionTransformer(patch_size_px=16, image_size_px=64, embed_dim=48, depth=2, n_heads=3)
    return Encoder(BagOfChannels(backbone), SelfNormalize(), input_size_px=64)


def main() -> None:
    """Embed one synthetic field of view."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder, a checkpoint, or a model of the hub; untrained where not given")
    parser.add_argument("--output", help="write the table to this Parquet file")
    options = parser.parse_args()
    encoder = morphem.load(options.model) if options.model else untrained_encoder()

    study = default_studies()[0]
    image = generate_image(study, next(study.fields()))
    planes = np.stack(image.planes)  # (C, H, W), uint8
    table = encoder.embed(planes, channels=study.channel_types, key=image.image_id)
    print(f"{planes.shape[0]} channels of {planes.shape[1]} x {planes.shape[2]} px: {', '.join(study.channel_types)}")
    print(f"{table.values.shape[1]} features, from {table.columns[0]} to {table.columns[-1]}")

    turned = encoder.embed(planes[::-1].copy(), channels=study.channel_types[::-1], key=image.image_id)
    print("channels in another order give the same table:", bool(np.allclose(table.values, turned.values, atol=1e-5)))

    mean = encoder.embed(planes[:2], channels=study.channel_types[:2], key=image.image_id, combine="mean")
    print(f"two of the channels, averaged: {mean.values.shape[1]} features")
    if options.output:
        table.write(options.output)
        print("wrote", options.output)


if __name__ == "__main__":
    main()
