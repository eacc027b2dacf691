import torch

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.types import ChannelBatch


def _batch(counts: list[int]) -> ChannelBatch:
    generator = torch.Generator().manual_seed(0)
    images = [
        [torch.randint(0, 256, (16, 16), generator=generator, dtype=torch.uint8) for _ in range(c)] for c in counts
    ]
    batch = ChannelBatch.from_planes(images, [["nucleus", "actin", "er"][:c] for c in counts])
    return batch._replace(planes=batch.planes.float().reshape(-1, 1, 16, 16) / 255)


def test_every_plane_gets_an_embedding_in_the_order_of_the_planes() -> None:
    strategy, batch = BagOfChannels.tiny().eval(), _batch([2, 1, 3])
    result = strategy(batch)
    assert result.shape == (6, strategy.embed_dim)
    alone = torch.cat([strategy.backbone(plane[None]) for plane in batch.planes])
    torch.testing.assert_close(result, alone, atol=1e-6, rtol=0)


def test_what_a_plane_shows_makes_no_difference() -> None:
    strategy, batch = BagOfChannels.tiny().eval(), _batch([2])
    assert torch.equal(strategy(batch), strategy(batch._replace(channel_types=("actin", "nucleus"))))
