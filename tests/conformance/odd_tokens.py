"""Channel strategies on tokens, each right but for one thing."""

from morphem.channels.bag_of_channels import BagOfChannels


class SkipsOne(BagOfChannels):
    """Leaves a plane without a sequence."""

    def sequences(self, batch):
        (part,) = super().sequences(batch)
        return [part._replace(tokens=part.tokens[1:], places=part.places[1:], rows=part.rows[1:])]


class LongPatches(BagOfChannels):
    """Numbers one patch more than there are tokens."""

    def sequences(self, batch):
        (part,) = super().sequences(batch)
        return [part._replace(patches=part.patches[:, :-1])]


class BeyondGrid(BagOfChannels):
    """Counts patches from 1."""

    def sequences(self, batch):
        (part,) = super().sequences(batch)
        return [part._replace(patches=part.patches + 1)]


class OtherEmbedding(BagOfChannels):
    """Embeds otherwise than it encodes."""

    def forward(self, batch):
        return super().forward(batch) + 1


class NoFirstToken(BagOfChannels):
    """Drops the class token."""

    def encode(self, tokens):
        return super().encode(tokens)[:, 1:]


class WholeOnly(BagOfChannels):
    """Encodes all tokens or none."""

    def encode(self, tokens):
        if tokens.shape[1] != 16:
            raise ValueError("16 tokens, please")
        return super().encode(tokens)


class Together(BagOfChannels):
    """Lets sequences see each other once they are encoded, but for the class token."""

    def encode(self, tokens):
        encoded = super().encode(tokens)
        encoded[:, 1:] = encoded[:, 1:] - encoded[:, 1:].mean(0)
        return encoded


class OnePixel(BagOfChannels):
    """Gives one pixel for each token."""

    def pixels(self, batch, sequences):
        return super().pixels(batch, sequences)[..., :1]
