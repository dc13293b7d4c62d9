"""Named parameters with their gradients: what every layer and model is."""

import os

import numpy as np

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


def real_dtype(dtype):
    """float32 or float64 as a dtype object; any other is a TypeError."""
    dtype = np.dtype(dtype)
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be float32 or float64, got {dtype}")
    return dtype


class Module:
    """Parameters, their gradients and their exchange as a state dict.

    Attributes
    ----------
    params, grads : dict of str to ndarray
        The same keys, shapes and dtype; ``backward`` adds into ``grads``.
    """

    def __init__(self, dtype="float32"):
        self.dtype = real_dtype(dtype)
        self.params = {}
        self.grads = {}

    def _add(self, name, value):
        self.params[name] = np.ascontiguousarray(value, self.dtype)
        self.grads[name] = np.zeros_like(self.params[name])

    def zero_grad(self):
        """Set every gradient to zero, in place."""
        for g in self.grads.values():
            g.fill(0)

    def state_dict(self):
        """A copy of the parameters by name."""
        return {name: p.copy() for name, p in self.params.items()}

    def load_state_dict(self, mapping, prefix=""):
        """Copy parameters from a mapping of names to arrays or from a file, all or nothing.

        Parameters
        ----------
        mapping : mapping of str to array_like, or str or path-like
            NumPy arrays or anything that ``np.asarray`` takes, torch tensors included; or the
            path of a ``.safetensors`` or ``.npz`` file of such (`rnnfast.weights.load`).
        prefix : str
            Read the entries whose names start so; the others are ignored. Without a prefix every
            entry must be a parameter.

        Raises
        ------
        KeyError
            If names are missing or unknown; both are listed.
        ValueError
            If a shape differs; the parameter is named. If a file is cut short or of another kind.
        """
        source = type(self).__name__
        if isinstance(mapping, str | os.PathLike):
            from rnnfast import weights

            source = f"{source} from {os.fspath(mapping)}"
            mapping, prefix = weights.load(mapping, prefix), ""
        given = {k[len(prefix) :]: v for k, v in mapping.items() if k.startswith(prefix)}
        missing = [k for k in self.params if k not in given]
        unknown = [k for k in given if k not in self.params]
        if missing or unknown:
            raise KeyError(f"{source}: missing {missing}, unknown {unknown}")
        arrays = {}
        for name, value in given.items():
            if hasattr(value, "detach"):
                value = value.detach().cpu()
            try:
                arrays[name] = np.asarray(value)
            except (ValueError, TypeError) as error:
                raise ValueError(f"{name}: {error}") from None
            if arrays[name].shape != self.params[name].shape:
                raise ValueError(
                    f"{name}: expected shape {self.params[name].shape}, got {arrays[name].shape}"
                )
            if arrays[name].dtype.kind != "f":
                raise ValueError(f"{name}: expected real numbers, got {arrays[name].dtype}")
        for name, value in arrays.items():
            self.params[name][...] = value

    def save_state_dict(self, path, prefix=""):
        """Write the parameters to a ``.safetensors`` or ``.npz`` file, whole or not at all.

        Parameters
        ----------
        path : str or path-like
        prefix : str
            Put before every name, as `load_state_dict` takes one off.
        """
        from rnnfast import weights

        weights.save(path, self.params, prefix)

    @property
    def num_parameters(self):
        """How many numbers are learnt."""
        return sum(p.size for p in self.params.values())
