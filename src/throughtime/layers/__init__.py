"""What models are made of."""

from throughtime.layers.attention import SelfAttention
from throughtime.layers.characters import CharacterFeatures
from throughtime.layers.crf import CRF
from throughtime.layers.dropout import LockedDropout
from throughtime.layers.foretelling import Foretelling
from throughtime.layers.pooling import POOLINGS, Pooling
from throughtime.layers.recurrent import Recurrent
from throughtime.layers.tokens import TokenFeatures, Tokens
from throughtime.layers.votes import Votes
from throughtime.layers.windows import Windows

__all__ = [
    "CRF",
    "POOLINGS",
    "CharacterFeatures",
    "Foretelling",
    "LockedDropout",
    "Pooling",
    "Recurrent",
    "SelfAttention",
    "TokenFeatures",
    "Tokens",
    "Votes",
    "Windows",
]
