"""State dicts in files: ``.safetensors`` (the extra [cli] or any other with safetensors) and
``.npz``. Never a pickle: nothing that is read can run code.

A layer's or model's ``load_state_dict`` takes such a path itself and its ``save_state_dict`` writes
one; the functions here are for looking into a file and for putting several layers into one.
"""

import io
import os

import numpy as np

from rnnfast._files import replace

SUFFIXES = (".safetensors", ".npz")


def _suffix(path):
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a name that ends in .safetensors or .npz "
                         "(pickled files, as .pt and .bin are, are not read)")  # fmt: skip
    return suffix


def load(path, prefix=""):
    """Arrays of a ``.safetensors`` or ``.npz`` file by name.

    Parameters
    ----------
    path : str or path-like
    prefix : str
        Read only the entries whose names start so; the names returned are without it.

    Returns
    -------
    dict of str to ndarray
        bfloat16, which NumPy has not got, comes as float32, which is exact.

    Raises
    ------
    OSError
        If the file cannot be opened.
    ValueError
        If it is cut short or of another kind, or holds Python objects; the message names the file
        and, where one is to blame, the tensor.

    Examples
    --------
    >>> import os, tempfile, rnnfast
    >>> path = os.path.join(tempfile.mkdtemp(), "net.npz")
    >>> gru = rnnfast.GRU(3, 5, seed=0)
    >>> gru.save_state_dict(path, prefix="encoder.rnn.")
    >>> sorted(rnnfast.weights.load(path, prefix="encoder.rnn."))
    ['bias_hh_l0', 'bias_ih_l0', 'weight_hh_l0', 'weight_ih_l0']
    """
    path = os.fspath(path)
    read = _load_npz if _suffix(path) == ".npz" else _load_safetensors
    return {name.removeprefix(prefix): a for name, a in read(path, prefix).items()}


def save(path, mapping, prefix=""):
    """Write arrays by name to a ``.safetensors`` or ``.npz`` file, whole or not at all.

    Parameters
    ----------
    path : str or path-like
    mapping : mapping of str to array_like
    prefix : str
        Put before every name.
    """
    path = os.fspath(path)
    arrays = {prefix + name: np.ascontiguousarray(a) for name, a in mapping.items()}
    for name, a in arrays.items():
        if a.dtype.kind not in "fiub":
            raise ValueError(f"{name}: expected numbers, got {a.dtype}")
    if _suffix(path) == ".npz":
        file = io.BytesIO()
        np.savez(file, allow_pickle=False, **arrays)
        data = file.getvalue()
    else:
        from safetensors.numpy import save as to_bytes

        data = to_bytes(arrays)
    replace(path, data)


def _load_npz(path, prefix):
    import zipfile  # 10 ms: only where it is used
    import zlib

    arrays, name = {}, ""
    with open(path, "rb") as file:
        try:
            if file.read(2) != b"PK":  # else NumPy takes it for one array or a pickle
                raise ValueError("no archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as archive:
                for name in archive.files:
                    if name.startswith(prefix):
                        arrays[name] = archive[name]
        except (ValueError, OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error,
                NotImplementedError) as error:  # fmt: skip
            raise ValueError(f"{path}: {name + ': ' if name else ''}cut short or not an .npz file "
                             f"of arrays ({error})") from None  # fmt: skip
    return arrays


def _load_safetensors(path, prefix):
    from safetensors import SafetensorError, deserialize, safe_open

    with open(path, "rb"):  # its errors name their cause; safe_open's do not
        pass
    try:
        with safe_open(path, framework="np") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]
            dtypes = {name: file.get_slice(name).get_dtype() for name in names}
            arrays = {}
            for name in names:
                if dtypes[name] == "BF16":
                    continue
                try:
                    arrays[name] = file.get_tensor(name)
                except (TypeError, AttributeError):
                    raise ValueError(f"{path}: {name} is {dtypes[name]}, "
                                     "which NumPy has not got") from None  # fmt: skip
        if len(arrays) < len(names):
            with open(path, "rb") as file:
                raw = dict(deserialize(file.read()))
            for name in names:
                if dtypes[name] == "BF16":
                    high = np.frombuffer(raw[name]["data"], "<u2").astype(np.uint32)
                    arrays[name] = (high << 16).view(np.float32).reshape(raw[name]["shape"])
    except SafetensorError as error:
        raise ValueError(f"{path}: cut short or not a safetensors file ({error})") from None
    return arrays
