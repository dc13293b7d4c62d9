"""Recurrent neural networks on the CPU at hardware speed, NumPy arrays in and out."""

from rnnfast import convert, losses, models, optim, training, weights
from rnnfast._config import (
    get_denormals,
    get_isa,
    get_num_threads,
    set_denormals,
    set_isa,
    set_num_threads,
    show_config,
)
from rnnfast._engine import get_engine, set_engine
from rnnfast.clipping import clip_grad_norm, clip_grad_value
from rnnfast.layers import (
    GRU,
    LSTM,
    RNN,
    Embedding,
    GRUCell,
    Linear,
    LSTMCell,
    RNNCell,
    last_output,
)

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Embedding",
    "GRUCell",
    "LSTMCell",
    "Linear",
    "RNNCell",
    "clip_grad_norm",
    "clip_grad_value",
    "convert",
    "get_denormals",
    "get_engine",
    "get_isa",
    "get_num_threads",
    "last_output",
    "losses",
    "models",
    "optim",
    "set_denormals",
    "set_engine",
    "set_isa",
    "set_num_threads",
    "show_config",
    "training",
    "weights",
]
