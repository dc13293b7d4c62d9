from typing import Literal

from numpy.typing import ArrayLike

from rnnfast._module import Array

Cell = Literal["rnn", "lstm", "gru"]
Framework = Literal["torch", "keras", "onnx"]
Torch = tuple[Array, Array, Array | None, Array | None]
#: (kernel, recurrent_kernel, bias) or (W, R, B)
Triple = tuple[Array, Array, Array | None]
Bias = ArrayLike | None

ORDER: dict[Cell, dict[Framework, str]]

def torch_to_keras_rnn(
    w_ih: ArrayLike, w_hh: ArrayLike, b_ih: Bias = None, b_hh: Bias = None
) -> Triple: ...
def torch_to_keras_lstm(
    w_ih: ArrayLike, w_hh: ArrayLike, b_ih: Bias = None, b_hh: Bias = None
) -> Triple: ...
def torch_to_keras_gru(
    w_ih: ArrayLike, w_hh: ArrayLike, b_ih: Bias = None, b_hh: Bias = None, reset_after: bool = True
) -> Triple: ...
def keras_to_torch_rnn(
    kernel: ArrayLike, recurrent_kernel: ArrayLike, bias: Bias = None
) -> Torch: ...
def keras_to_torch_lstm(
    kernel: ArrayLike, recurrent_kernel: ArrayLike, bias: Bias = None
) -> Torch: ...
def keras_to_torch_gru(
    kernel: ArrayLike, recurrent_kernel: ArrayLike, bias: Bias = None
) -> Torch: ...
def torch_to_onnx_rnn(
    w_ih: ArrayLike, w_hh: ArrayLike, b_ih: Bias = None, b_hh: Bias = None
) -> Triple: ...
def torch_to_onnx_lstm(
    w_ih: ArrayLike, w_hh: ArrayLike, b_ih: Bias = None, b_hh: Bias = None
) -> Triple: ...
def torch_to_onnx_gru(
    w_ih: ArrayLike, w_hh: ArrayLike, b_ih: Bias = None, b_hh: Bias = None
) -> Triple: ...
def onnx_to_torch_rnn(
    W: ArrayLike, R: ArrayLike, B: Bias = None, direction: int = 0
) -> Torch: ...
def onnx_to_torch_lstm(
    W: ArrayLike, R: ArrayLike, B: Bias = None, direction: int = 0
) -> Torch: ...
def onnx_to_torch_gru(
    W: ArrayLike, R: ArrayLike, B: Bias = None, direction: int = 0
) -> Torch: ...
def keras_to_onnx_rnn(
    kernel: ArrayLike, recurrent_kernel: ArrayLike, bias: Bias = None
) -> Triple: ...
def keras_to_onnx_lstm(
    kernel: ArrayLike, recurrent_kernel: ArrayLike, bias: Bias = None
) -> Triple: ...
def keras_to_onnx_gru(
    kernel: ArrayLike, recurrent_kernel: ArrayLike, bias: Bias = None
) -> Triple: ...
def onnx_to_keras_rnn(
    W: ArrayLike, R: ArrayLike, B: Bias = None, direction: int = 0
) -> Triple: ...
def onnx_to_keras_lstm(
    W: ArrayLike, R: ArrayLike, B: Bias = None, direction: int = 0
) -> Triple: ...
def onnx_to_keras_gru(
    W: ArrayLike, R: ArrayLike, B: Bias = None, direction: int = 0, reset_after: bool = True
) -> Triple: ...
