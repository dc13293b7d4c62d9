"""State dicts in .safetensors and .npz files: what torch wrote, prefixes, and damaged files."""

import pickle

import numpy as np
import pytest

import rnnfast
from rnnfast import weights

SUFFIXES = (".safetensors", ".npz")
CELLS = {"RNN": {}, "LSTM": {"proj_size": 2}, "GRU": {}}


def layer(kind="LSTM", seed=0, **options):
    return getattr(rnnfast, kind)(3, 5, num_layers=2, bidirectional=True, seed=seed, **options)


def same(a, b):
    return a.keys() == b.keys() and all((a[k] == b[k]).all() for k in a)


def write(path, arrays):
    """A file as others write it, without rnnfast."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        from safetensors.numpy import save_file

        save_file(arrays, path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("prefix", ["", "encoder.rnn."])
def test_there_and_back(tmp_path, suffix, kind, prefix):
    net, other = layer(kind, **CELLS[kind]), layer(kind, seed=1, **CELLS[kind])
    path = tmp_path / f"net{suffix}"
    net.save_state_dict(path, prefix=prefix)
    assert all(name.startswith(prefix) for name in weights.load(path))
    other.load_state_dict(str(path), prefix=prefix)
    assert same(net.params, other.params)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_a_stack_out_of_a_torch_model(tmp_path, dtype):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    dtype = getattr(torch, dtype)
    model = torch.nn.ModuleDict({
        "embed": torch.nn.Embedding(10, 3),
        "encoder": torch.nn.ModuleDict({"rnn": torch.nn.GRU(3, 5, 2, bidirectional=True)}),
    }).to(dtype)  # fmt: skip
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    gru = rnnfast.GRU(3, 5, 2, bidirectional=True)
    gru.load_state_dict(tmp_path / "model.safetensors", prefix="encoder.rnn.")
    x = np.random.default_rng(0).standard_normal((7, 2, 3)).astype(np.float32)
    with torch.no_grad():
        want = model.float()["encoder"]["rnn"](torch.tensor(x))[0].numpy()
    np.testing.assert_allclose(gru(x)[0], want, rtol=1e-5, atol=1e-6)


def test_torch_reads_what_we_write(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    net = layer("GRU")
    net.save_state_dict(tmp_path / "net.safetensors", prefix="rnn.")
    model = torch.nn.ModuleDict({"rnn": torch.nn.GRU(3, 5, 2, bidirectional=True)})
    model.load_state_dict(load_file(tmp_path / "net.safetensors"))
    assert (model["rnn"].weight_hh_l1_reverse.detach().numpy()
            == net.params["weight_hh_l1_reverse"]).all()  # fmt: skip


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_model_of_several_layers(tmp_path, suffix):
    models = [rnnfast.models.SequenceToOne(rnnfast.GRU(2, 4, seed=s), 3, seed=s) for s in (0, 1)]
    models[0].save_state_dict(tmp_path / f"m{suffix}")
    models[1].load_state_dict(tmp_path / f"m{suffix}")
    assert same(models[0].params, models[1].params)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_missing_and_unknown_are_listed_and_nothing_is_loaded(tmp_path, suffix):
    net = layer("GRU")
    arrays, before = net.state_dict(), net.state_dict()
    arrays = {k: a + 1 for k, a in arrays.items()}
    arrays["weight_hr_l0"] = arrays.pop("bias_hh_l1")
    write(tmp_path / f"w{suffix}", arrays)
    with pytest.raises(KeyError, match=rf"GRU from .*w{suffix}: missing \['bias_hh_l1'\], "
                                       r"unknown \['weight_hr_l0'\]"):  # fmt: skip
        net.load_state_dict(tmp_path / f"w{suffix}")
    assert same(net.params, before)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_wrong_shape_is_named_and_nothing_is_loaded(tmp_path, suffix):
    net = layer("GRU")
    before = net.state_dict()
    arrays = {k: a + 1 for k, a in before.items()}
    arrays["weight_hh_l1"] = arrays["weight_hh_l1"].T.copy()
    write(tmp_path / f"w{suffix}", arrays)
    with pytest.raises(ValueError, match=r"weight_hh_l1: expected shape \(15, 5\), got \(5, 15\)"):
        net.load_state_dict(tmp_path / f"w{suffix}")
    assert same(net.params, before)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.99])
def test_a_file_cut_short(tmp_path, suffix, keep):
    net, path = layer(), tmp_path / f"w{suffix}"
    net.save_state_dict(path)
    data, before = path.read_bytes(), net.state_dict()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(ValueError, match=rf"w{suffix}: cut short or not"):
        net.load_state_dict(path)
    assert same(net.params, before)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_file(tmp_path, suffix):
    """Whichever byte is wrong: either a value is (safetensors has no checksum), a name is, or the
    message says that the file is damaged."""
    net, path = rnnfast.GRU(1, 1, seed=0), tmp_path / f"w{suffix}"
    net.save_state_dict(path)
    data, before = path.read_bytes(), net.state_dict()
    for at in range(0, len(data), 3):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        path.write_bytes(damaged)
        try:
            net.load_state_dict(path)
        except (ValueError, KeyError) as error:
            assert f"w{suffix}: " in str(error) or "expected shape" in str(error)
            assert same(net.params, before)
        net.load_state_dict(before)


def test_the_array_that_is_damaged_is_named(tmp_path):
    net, path = layer("GRU"), tmp_path / "w.npz"
    net.save_state_dict(path)
    data = bytearray(path.read_bytes())
    at = data.find(net.params["weight_hh_l1"].tobytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"w\.npz: weight_hh_l1: cut short or not an \.npz file"):
        net.load_state_dict(path)
    with pytest.raises(ValueError, match="weight_hh_l1: setting an array element"):
        net.load_state_dict(net.state_dict() | {"weight_hh_l1": [[1.0], [2.0, 3.0]]})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_missing_file(tmp_path, suffix):
    with pytest.raises(FileNotFoundError, match=f"none{suffix}"):
        layer().load_state_dict(tmp_path / f"none{suffix}")


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was read",)


def test_no_pickle_is_ever_read(tmp_path):
    plain, inside = tmp_path / "plain.npz", tmp_path / "inside.npz"
    plain.write_bytes(pickle.dumps(Bomb()))
    np.savez(inside, weight_ih_l0=np.array([Bomb()], object))
    for path in (plain, inside):
        with pytest.raises(ValueError, match=r"not an \.npz file of arrays"):
            weights.load(path)
    with pytest.raises(ValueError, match=r"model\.pt: expected a name that ends in \.safetensors"):
        weights.load(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="bomb: expected numbers, got object"):
        weights.save(tmp_path / "w.npz", {"bomb": np.array([Bomb()], object)})


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_writing_is_whole_or_not_at_all(tmp_path, suffix, monkeypatch):
    path = tmp_path / f"w{suffix}"
    weights.save(path, {"a": np.ones(3, np.float32)})
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            weights.save(path, {"a": np.zeros(3, np.float32)})
    assert (weights.load(path)["a"] == 1).all()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
