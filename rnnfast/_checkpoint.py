"""Models and checkpoints on disk: safetensors with JSON in the metadata, never a pickle."""

import importlib
import json

from rnnfast._files import replace
from rnnfast._text import InputError
from rnnfast.charlm import CharLM

MODEL, CHECKPOINT = "rnnfast-charlm", "rnnfast-charlm-checkpoint"
VERSION = "1"


def require(*names):
    """Import libraries of the extra [cli]; `InputError` says how to get a missing one."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError:
            raise InputError(f'{name.partition(".")[0]} is not installed: '
                             'pip install "rnnfast[cli]"') from None


def _write(path, kind, tensors, **metadata):
    from safetensors.numpy import save

    texts = {key: json.dumps(value) for key, value in metadata.items()}
    replace(path, save(tensors, {"format": kind, "version": VERSION} | texts))


def _read(path, kind):
    """(tensors, metadata) of a file that `_write` wrote; `InputError` for any other."""
    require("safetensors")
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb"):  # its errors name their cause; safe_open's do not
            pass
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != kind:
                raise InputError(f"{path}: not a file of format {kind}")
            if metadata.get("version") != VERSION:
                raise InputError(f"{path}: format version {metadata.get('version')}, "
                                 f"this rnnfast reads {VERSION}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise InputError(f"{path}: cut short or not a safetensors file ({error})") from None
    values = {}
    for key in metadata.keys() - {"format", "version"}:
        try:
            values[key] = json.loads(metadata[key])
        except ValueError:
            raise InputError(f"{path}: metadata {key!r} is not JSON") from None
    return tensors, values


def _build(path, config, tensors):
    """The model that `config` describes, with the parameters in `tensors`."""
    try:
        V, H, layers = len(config["vocabulary"]), config["hidden"], config["layers"]
        # Before anything is allocated: a damaged size must not ask for terabytes.
        shape = tensors["output.weight"].shape
        if shape != (V, H):
            raise ValueError(f"output.weight: expected shape {(V, H)}, got {shape}")
        if f"recurrent.weight_hh_l{layers - 1}" not in tensors:
            raise ValueError(f"there are no weights of layer {layers}")
        model = CharLM(**config)
        model.load_state_dict(tensors)
    except KeyError as error:
        raise InputError(f"{path}: missing or unknown: {error.args[0]}") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: {error}") from None
    return model


def save_model(path, model, training=None):
    """Write a model; `training` is any JSON value that tells how it came about."""
    _write(path, MODEL, model.state_dict(), config=model.config, training=training or {})


def load_model(path):
    """(model, training) of a file that `save_model` wrote."""
    tensors, values = _read(path, MODEL)
    if "config" not in values:
        raise InputError(f"{path}: the metadata has no configuration")
    training = values.get("training", {})
    if not isinstance(training, dict):
        raise InputError(f"{path}: metadata 'training' is not what it should be")
    return _build(path, values["config"], tensors), training


def save_checkpoint(path, model, optimizer, state, run):
    """Write all that training needs to go on with the same bits; `run` is a JSON value."""
    tensors = {f"model.{k}": a for k, a in model.state_dict().items()}
    tensors |= {f"optimizer.{k}": a for k, a in optimizer.state_dict().items()}
    if state is not None:
        parts = state if isinstance(state, tuple) else (state,)
        tensors |= {f"state.{k}": a.copy() for k, a in enumerate(parts)}
    _write(path, CHECKPOINT, tensors, config=model.config, run=run)


def load_checkpoint(path):
    """(model, optimizer state, carried state, run) of a file that `save_checkpoint` wrote."""
    tensors, values = _read(path, CHECKPOINT)
    if not {"config", "run"} <= values.keys():
        raise InputError(f"{path}: the metadata is incomplete")

    def part(prefix):
        return {k.removeprefix(prefix): a for k, a in tensors.items() if k.startswith(prefix)}

    parts = tuple(part("state.").values())
    state = None if not parts else parts[0] if len(parts) == 1 else parts
    return _build(path, values["config"], part("model.")), part("optimizer."), state, values["run"]
