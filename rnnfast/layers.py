"""Recurrent layers: validate, arrange the batch, call the engine. Thin on purpose; the arithmetic
is in the functions of the engine, the equations in docs/math.md."""

import copy
import math
import warnings
from dataclasses import dataclass, field

import numpy as np

from rnnfast import _engine, _threads
from rnnfast._memory import empty_array
from rnnfast._module import Module
from rnnfast._packing import Packing, block_rows, time_blocks
from rnnfast._stream import Stack, Steps

#: Multiply-adds in a direction from which the two directions get a thread each: below, handing over
#: costs more than it saves (docs/performance.md)
PARALLEL_WORK = 4_000_000

MERGES = ("concat", "sum", "mul", "average")


def _positive(name, value, least=1):
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def _probability(name, value):
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}")
    return float(value)


def real_array(owner, name, x, dtype):
    """x as a native, C-contiguous array of `dtype`; float16 is widened, which is exact.

    Any other dtype is a TypeError: a silent conversion would hide a costly copy or a loss.
    """
    if type(x) is np.ndarray and x.dtype == dtype and x.flags.carray:
        return x
    x = np.asarray(x)
    if x.dtype.kind != "f" or x.dtype.newbyteorder("=") not in (dtype, np.dtype(np.float16)):
        raise TypeError(f"{owner}: {name} must be {dtype}, got {x.dtype}")
    return np.require(x, dtype, ["C", "ALIGNED"])


def gradient(owner, name, dy, shape, dtype):
    """dE/d(output) as `real_array` gives it, of just this shape."""
    dy = real_array(owner, name, dy, dtype)
    if dy.shape != shape:
        raise ValueError(f"{owner}: {name} must have shape {shape}, got {dy.shape}")
    return dy


@dataclass
class Tape:
    """What one call of ``forward`` keeps for ``backward``."""

    packing: Packing
    segments: list = field(default_factory=list)
    unbatched: bool = False
    pad_output: str = "zero"

    @property
    def nbytes(self):
        """Bytes of all arrays the tape holds, each memory counted once."""
        seen = {}

        def visit(item):
            if isinstance(item, np.ndarray):
                while isinstance(item.base, np.ndarray):
                    item = item.base
                seen[id(item)] = item.nbytes
            elif isinstance(item, dict):
                for value in item.values():
                    visit(value)
            elif isinstance(item, list | tuple):
                for value in item:
                    visit(value)
            elif isinstance(item, Packing):
                visit(list(vars(item).values()))

        visit([self.packing, self.segments])
        return sum(seen.values())


class Recurrent(Module):
    """What RNN, LSTM and GRU share; see `LSTM` for the arguments."""

    cell = ""
    gates = 1
    states = 1  # arrays per state: LSTM has h and c

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
                 dropout=0.0, bidirectional=False, proj_size=0, *, dtype="float32", seed=None,
                 init="torch", forget_bias=None, merge="concat", layer_norm=False,
                 input_dropout=0.0, recurrent_dropout=0.0, checkpoint_every=None,
                 **options):  # fmt: skip
        super().__init__(dtype)
        self.input_size = _positive("input_size", input_size)
        self.hidden_size = _positive("hidden_size", hidden_size)
        self.num_layers = _positive("num_layers", num_layers)
        self.bias, self.batch_first = bool(bias), bool(batch_first)
        self.dropout = _probability("dropout", dropout)
        if self.dropout and self.num_layers == 1:
            warnings.warn(f"{self._me}: dropout acts between layers, and there is only one",
                          stacklevel=3)  # fmt: skip
        self.input_dropout = _probability("input_dropout", input_dropout)
        self.recurrent_dropout = _probability("recurrent_dropout", recurrent_dropout)
        self.proj_size = _positive("proj_size", proj_size, least=0)
        if self.proj_size >= self.hidden_size:
            raise ValueError(f"proj_size must be below hidden_size, got {proj_size}")
        if merge not in MERGES:
            raise ValueError(f"merge must be one of {MERGES}, got {merge!r}")
        self.layer_norm = bool(layer_norm)
        self.state_size = self.proj_size or self.hidden_size  # P: the size of h
        self._set_directions(bool(bidirectional), merge)
        if checkpoint_every is not None:
            checkpoint_every = _positive("checkpoint_every", checkpoint_every)
        self.checkpoint_every = checkpoint_every
        self.options = options
        self.training_rng = np.random.default_rng(seed)
        self._initialise(init, forget_bias, self.training_rng)

    def _set_directions(self, bidirectional, merge):
        """What follows from the number of directions and from how they are merged."""
        self.bidirectional, self.merge = bidirectional, merge
        self.directions = 2 if bidirectional else 1
        self.output_size = self.state_size * (self.directions if merge == "concat" else 1)
        self._known_names = [
            {key: f"{stem}_l{layer}{suffix}" for key, (stem, _) in self._shapes(layer).items()}
            for layer in range(self.num_layers) for suffix in ("", "_reverse")[: self.directions]
        ]  # fmt: skip

    # ---- parameters ------------------------------------------------------------------------

    def _gate_rows(self):
        return self.gates * self.hidden_size

    def _shapes(self, layer):
        """Parameter shapes of one layer and direction: engine name -> (stem, shape)."""
        rows, H = self._gate_rows(), self.hidden_size
        width = self.input_size if layer == 0 else self.output_size
        shapes = {"w_ih": ("weight_ih", (rows, width)),
                  "w_hh": ("weight_hh", (rows, self.state_size))}  # fmt: skip
        if self.bias:
            shapes |= {"b_ih": ("bias_ih", (rows,)), "b_hh": ("bias_hh", (rows,))}
        if self.proj_size:
            shapes["w_hr"] = ("weight_hr", (self.proj_size, H))
        if self.layer_norm:
            shapes |= {"gain_ih": ("gain_ih", (rows,)), "gain_hh": ("gain_hh", (rows,))}
        return shapes

    def _names(self, layer, direction):
        """Engine name -> parameter name."""
        return self._known_names[layer * self.directions + direction]

    def _initialise(self, init, forget_bias, rng):
        if init not in ("torch", "keras"):
            raise ValueError(f"init must be 'torch' or 'keras', got {init!r}")
        bound = 1 / math.sqrt(self.hidden_size)
        for layer in range(self.num_layers):
            for direction in range(self.directions):
                names = self._names(layer, direction)
                for key, (_, shape) in self._shapes(layer).items():
                    if key.startswith("gain"):
                        value = np.ones(shape)
                    elif key == "bias_c":
                        value = np.zeros(shape)
                    elif init == "torch" or key in ("w_hr", "peephole"):
                        value = rng.uniform(-bound, bound, shape)
                    elif key == "w_ih":
                        value = glorot_uniform(rng, shape)
                    elif key == "w_hh":
                        value = orthogonal(rng, shape)
                    else:
                        value = np.zeros(shape)
                    self._add(names[key], value)
                if init == "keras" and forget_bias is None:
                    self._set_forget_bias(names, 1.0)
                elif forget_bias is not None:
                    self._set_forget_bias(names, float(forget_bias))

    def _set_forget_bias(self, names, value):
        """Only an LSTM has a forget gate."""

    def _weights(self, layer, direction):
        """Parameters by engine name."""
        params = self.params
        return {key: params[name] for key, name in self._names(layer, direction).items()}

    # ---- calls -----------------------------------------------------------------------------

    def __call__(self, x, state=None, lengths=None, resets=None, *, pad_output="zero", out=None,
                 return_sequences=True):  # fmt: skip
        """Run the layer and keep nothing.

        Parameters
        ----------
        x : array
            Input, in the layer's dtype (float16 is widened): (T, B, I), or (B, T, I) with
            batch_first, or (T, I) for one sequence; or integer class indices in [0, I) without
            the last axis, which stand for one-hot vectors and are looked up; or a list of arrays
            (T_i, I), one per sequence, which sets `lengths`.
        state : array or (array, array) for an LSTM, optional
            Initial state(s), (num_layers * directions, B, size); zero by default.
        lengths : (B,) integers, optional
            Steps of each sequence, in any order, 0 allowed. What lies beyond is never read.
        resets : (T, B) bool, optional
            True: the state is zero before that step ((B, T) with batch_first, (T,) unbatched).
        pad_output : {"zero", "repeat"}
            What output past a sequence's end is: exactly 0, or its last output again.
        out : array, optional
            Where to write the output.
        return_sequences : bool
            False: no output at each step is written; the output is the last layer's final h of
            each sequence, (B, features), both directions merged (each has read all of it).

        Returns
        -------
        output : array
            (T, B, features), laid out like x.
        state : array or (array, array)
            States at each sequence's own end, shaped like the initial ones.
        """
        if (type(x) is np.ndarray and lengths is None and pad_output == "zero"
                and self._stackable()):  # fmt: skip
            done = self._run_stack(x, state, resets, out, return_sequences)
            if done is not None:
                return done
        output, state, _ = self._run(x, state, lengths, resets, False, pad_output, out,
                                     return_sequences)  # fmt: skip
        return output, state

    def forward(self, x, state=None, lengths=None, resets=None, *, pad_output="zero"):
        """Run the layer for training: as a call, and a tape for `backward` as third result.

        Dropout, where the layer has it, is active here and only here.
        """
        return self._run(x, state, lengths, resets, True, pad_output)

    def _stackable(self):
        """Whether `Stack` can run this layer: fixed order, directions side by side."""
        return (_engine.get_engine() == "fused"
                and (self.directions == 1 or self.merge == "concat"))  # fmt: skip

    def _packed(self, B, steps):
        """The layer's weights, packed as they are now, ready for B sequences."""
        options = self.options
        act = options["nonlinearity"] if self.cell == "rnn" else options["gate"]
        return Stack(self.cell, self.params, self._known_names, self.directions, B, act,
                     options.get("coupled", False), options.get("clip", 0.0),
                     options.get("reset_after", True), steps)  # fmt: skip

    def _run_stack(self, x, state, resets, out, sequences):
        """A call with a dense batch on a `Stack`; None where `_run` has to see the arguments."""
        ids = x.dtype.kind in "iu"
        ndim = x.ndim + ids
        unbatched = ndim == 2
        if ndim not in (2, 3) or x.size == 0:
            return None
        if ids:
            x = x.astype(np.int64, copy=False)
        elif x.dtype != self.dtype or x.shape[-1] != self.input_size:
            return None
        x = x[:, None] if unbatched else x.swapaxes(0, 1) if self.batch_first else x
        T, B = x.shape[:2]
        shape = (T, B, self.output_size)
        turned = self.batch_first and not unbatched
        direct = False  # whether the output goes to `out` at once
        if out is not None:
            final = (B, T, self.output_size) if turned else shape[::2] if unbatched else shape
            if (not sequences or type(out) is not np.ndarray or out.shape != final
                    or out.dtype != self.dtype or not out.flags.writeable):  # fmt: skip
                return None
            direct = not turned and out.flags.carray and not np.may_share_memory(out, x)
        if resets is not None:
            resets = np.ascontiguousarray(self._resets(resets, T, B, unbatched))
        stack = self._packed(B, T)
        if state is not None:
            stack.set_state(self._states(state, B, None, unbatched))
        y = out if direct else empty_array(shape, self.dtype) if sequences else None
        stack.run(np.ascontiguousarray(x), T, y, resets)
        states = stack.get_state()
        if unbatched:
            states = [a[:, 0] for a in states]
        last = states[0] if self.states == 1 else tuple(states)
        if not sequences:
            return self._final_output(states[0]), last
        if direct:
            return out, last
        y = y[:, 0] if unbatched else y.swapaxes(0, 1) if turned else y
        if out is None:
            return y, last
        out[...] = y
        return out, last

    @property
    def _me(self):
        return type(self).__name__

    def _arrange(self, x, state, lengths, resets):
        """(rows, states per layer and direction, packing, packed resets, unbatched)."""
        if isinstance(x, (list, tuple)):
            x, lengths = self._stack(x, lengths)
        x = np.asarray(x)
        ids = x.dtype.kind in "iu"
        ndim = x.ndim + ids
        if ndim not in (2, 3):
            raise ValueError(
                f"{self._me}: x must have 3 dimensions (or 2 for one sequence; one less for "
                f"class indices), got shape {x.shape}")  # fmt: skip
        if not ids:
            x = real_array(self._me, "x", x, self.dtype)
            if x.shape[-1] != self.input_size:
                raise ValueError(f"{self._me}: x has {x.shape[-1]} features, "
                                 f"weight_ih_l0 expects {self.input_size}")  # fmt: skip
        unbatched = ndim == 2
        if unbatched:
            x = x[:, None]
        elif self.batch_first:
            x = x.swapaxes(0, 1)
        T, B = x.shape[:2]
        if T == 0:
            raise ValueError(f"{self._me}: a sequence needs at least one time step, got 0")
        packing = Packing(T, B, lengths, self._me)
        rows = packing.pack(x)
        if ids:
            rows = rows.astype(np.int64, copy=False)
            if rows.size and (rows.min() < 0 or rows.max() >= self.input_size):
                raise ValueError(f"{self._me}: class indices must lie in [0, {self.input_size}), "
                                 f"got {rows.min()} to {rows.max()}")  # fmt: skip
        if resets is not None:
            resets = packing.pack(self._resets(resets, T, B, unbatched))
        return rows, self._states(state, B, packing, unbatched), packing, resets, unbatched

    def _resets(self, resets, T, B, unbatched):
        """uint8 (T, B) from what a caller gives."""
        resets = np.asarray(resets)
        if resets.dtype.kind not in "b" and not np.isin(resets, (0, 1)).all():
            raise ValueError(f"{self._me}: resets must be True or False")
        want = (T,) if unbatched else (B, T) if self.batch_first else (T, B)
        if resets.shape not in (want, (T, B) if unbatched else want):
            raise ValueError(f"{self._me}: resets must have shape {want}, got {resets.shape}")
        resets = resets.T if self.batch_first and not unbatched else resets.reshape(T, B)
        return resets.astype(np.uint8)

    def _stack(self, x, lengths):
        """A list of (T_i, I) arrays as one padded array and its lengths."""
        if lengths is not None:
            raise ValueError(f"{self._me}: a list of sequences has its own lengths")
        x = [np.asarray(a) for a in x]
        if not x:
            raise ValueError(f"{self._me}: the list of sequences is empty")
        if any(a.ndim != x[0].ndim or a.shape[1:] != x[0].shape[1:] for a in x):
            raise ValueError(f"{self._me}: sequences must agree in all but their first axis, "
                             f"got {[a.shape for a in x]}")  # fmt: skip
        lengths = np.array([len(a) for a in x])
        dense = np.zeros((max(1, lengths.max()), len(x), *x[0].shape[1:]), np.result_type(*x))
        for b, a in enumerate(x):
            dense[: len(a), b] = a
        return (dense.swapaxes(0, 1) if self.batch_first else dense), lengths

    def _state_sizes(self):
        return (self.state_size, self.hidden_size)[: self.states]

    def _states(self, state, B, packing, unbatched):
        """Arrays (layers * directions, B, size), one per kind of state: new ones in packed order,
        or without `packing` those given."""
        n = self.num_layers * self.directions
        if state is None:
            return [np.zeros((n, B, size), self.dtype) for size in self._state_sizes()]
        given = (state,) if self.states == 1 else state
        if not isinstance(given, (tuple, list)) or len(given) != self.states:
            raise TypeError(f"{self._me}: state must be a pair (h, c), got {type(state).__name__}")
        arranged = []
        for name, a, size in zip("hc", given, self._state_sizes(), strict=False):
            a = real_array(self._me, f"state {name}", a, self.dtype)
            a = a[:, None] if unbatched and a.ndim == 2 else a
            if a.shape != (n, B, size):
                want = (n, size) if unbatched else (n, B, size)
                raise ValueError(f"{self._me}: state {name} must have shape {want}, got {a.shape}")
            arranged.append(a if packing is None else packing.sort(a))
        return arranged

    def _unstate(self, states, packing, unbatched):
        if packing.order is not None:
            states = [packing.unsort(a) for a in states]
        if unbatched:
            states = [a[:, 0] for a in states]
        return states[0] if self.states == 1 else tuple(states)

    def _run(self, x, state, lengths, resets, keep, pad_output, out=None, sequences=True):
        if pad_output not in ("zero", "repeat"):
            raise ValueError(f"pad_output must be 'zero' or 'repeat', got {pad_output!r}")
        rows, states, packing, resets, unbatched = self._arrange(x, state, lengths, resets)
        if out is not None:
            self._check_out(out, self._output_shape(packing, unbatched, sequences))
        output = self._output_rows(out, rows, packing, unbatched) if sequences else None
        tape = Tape(packing, unbatched=unbatched, pad_output=pad_output) if keep else None
        drops = self.dropout or self.input_dropout or self.recurrent_dropout
        seed = int(self.training_rng.integers(2**63)) if keep and drops else None
        checkpointed = keep and self.checkpoint_every is not None
        for blocks in self._segments(packing):
            before = [a.copy() for a in states] if checkpointed else None
            part = slice(blocks[0].rows.start, blocks[-1].rows.stop)
            x, inside = cut(rows, part), cut(resets, part)
            kept = self._segment(x, states, blocks, inside, packing, cut(output, part),
                                 keep and not checkpointed, seed)  # fmt: skip
            if keep:
                tape.segments.append({"blocks": blocks, "x": x, "resets": inside, "seed": seed,
                                      "before": before, "layers": kept})  # fmt: skip
        final = self._unstate(states, packing, unbatched)
        if sequences:
            y = packing.unpack(output, pad_output)
            y = y[:, 0] if unbatched else y.swapaxes(0, 1) if self.batch_first else y
        else:
            y = self._final_output(final if self.states == 1 else final[0])
        if out is not None and not np.may_share_memory(out, y):
            out[...] = y
        return (y if out is None else out), final, tape

    def _output_shape(self, packing, unbatched, sequences):
        B = () if unbatched else (packing.B,)
        if not sequences:
            return (*B, self.output_size)
        if self.batch_first:
            return (*B, packing.T, self.output_size)
        return (packing.T, *B, self.output_size)

    def _check_out(self, out, shape):
        if not isinstance(out, np.ndarray) or not out.flags.writeable:
            raise TypeError(f"{self._me}: out must be a writable ndarray")
        if out.shape != shape:
            raise ValueError(f"{self._me}: out must have shape {shape}, got {out.shape}")
        if out.dtype != self.dtype:
            raise TypeError(f"{self._me}: out must be {self.dtype}, got {out.dtype}")

    def _output_rows(self, out, x, packing, unbatched):
        """Where packed output rows go: the caller's array itself where it has their layout and
        is not the input at the same time."""
        in_order = packing.order is None and (unbatched or not self.batch_first)
        if out is not None and in_order and out.flags.carray and not np.may_share_memory(out, x):
            return out.reshape(packing.rows, self.output_size)
        return empty_array((packing.rows, self.output_size), self.dtype)

    def _final_output(self, h):
        """The last layer's final h, both directions merged."""
        if not self.bidirectional:
            return h[-1].copy()
        if self.merge == "concat":
            return np.concatenate([h[-2], h[-1]], axis=-1)
        y = np.empty_like(h[-1])
        merge_forward(self.merge, h[-2], h[-1], y)
        return y

    def _segments(self, packing):
        """Lists of blocks of time steps. A block is what one engine call covers; a segment is what
        runs through all layers before the next one starts.

        Checkpointing makes segments of whole blocks, at least checkpoint_every steps each, so the
        engine sees the same calls as without and gives the same bits. Where both directions are
        wanted there is one segment: the reverse direction starts at the end.
        """
        blocks = time_blocks(packing, block_rows(self._gate_rows()))
        if self.checkpoint_every is None or self.bidirectional:
            return [blocks]
        segments, steps = [[]], 0
        for block in blocks:
            if segments[-1] and steps >= self.checkpoint_every:
                segments.append([])
                steps = 0
            segments[-1].append(block)
            steps += block.stop - block.start
        return segments

    def _segment(self, x, states, blocks, resets, packing, output, keep, seed):
        """All layers over some blocks; writes the states and, unless it is None, `output`; returns
        the layers' tapes."""
        D, P, kept = self.directions, self.state_size, []
        for layer in range(self.num_layers):
            last = layer == self.num_layers - 1
            masks = self._masks(layer, blocks, x, packing, seed)
            if masks is not None:
                x = x * masks
            silent = last and output is None
            joined = output if last else empty_array((len(x), self.output_size), self.dtype)
            concat = self.merge == "concat" or D == 1
            wide = joined if concat or silent else empty_array((len(x), D * P), self.dtype)
            outs = [None] * D if silent else [wide] if D == 1 else [wide[:, :P], wide[:, P:]]
            h_masks = [self._state_mask(layer, d, packing, seed) for d in range(D)]
            tapes = self._both(
                lambda d: self._direction(layer, d, x, states, blocks, resets, outs[d], h_masks[d],
                                          keep), len(x))  # fmt: skip
            if not concat and not silent:
                merge_forward(self.merge, wide[:, :P], wide[:, P:], joined)
            if keep:
                kept.append({"tapes": tapes, "masks": masks,
                             "wide": wide if self.merge == "mul" else None})  # fmt: skip
            x = joined
        return kept

    def _masks(self, layer, blocks, x, packing, seed):
        """What dropout multiplies the rows of some blocks with, or None. The same for the same
        seed, however the blocks are grouped."""
        fresh = self.dropout if layer else 0.0
        if seed is None or not (fresh or self.input_dropout):
            return None
        if x.ndim == 1:
            raise ValueError(f"{self._me}: input_dropout needs vectors, not class indices")
        first, width = blocks[0].rows.start, x.shape[1]
        masks = np.ones(x.shape, self.dtype)
        whole = inverted_dropout([seed, layer, 0], (packing.B, width), self.input_dropout,
                                 self.dtype)  # fmt: skip
        for block in blocks:
            rows = slice(block.rows.start - first, block.rows.stop - first)
            if fresh:
                shape = (rows.stop - rows.start, width)
                masks[rows] = inverted_dropout([seed, layer, 1, block.start], shape, fresh,
                                               self.dtype)  # fmt: skip
            if self.input_dropout:
                row = rows.start
                for n in block.sizes:
                    masks[row : row + n] *= whole[:n]
                    row += int(n)
        return masks

    def _state_mask(self, layer, direction, packing, seed):
        """What recurrent dropout multiplies h with at every step, (B, P), or None."""
        if seed is None or not self.recurrent_dropout:
            return None
        return inverted_dropout([seed, layer, 2, direction], (packing.B, self.state_size),
                                self.recurrent_dropout, self.dtype)  # fmt: skip

    def _both(self, run, rows):
        """[run(direction) for each direction], on two threads where there is enough to do."""
        if self.directions == 1:
            return [run(0)]
        work = rows * self._gate_rows() * (self.state_size + self.input_size)
        if work < PARALLEL_WORK or _threads.get_num_threads() < 2:
            return [run(0), run(1)]
        return _threads.run_pair(run)

    def _direction(self, layer, direction, x, states, blocks, resets, out, h_mask, keep):
        """One layer in one direction over some blocks; returns the engine's tapes, in the order
        the blocks were visited."""
        forward = getattr(_engine.functions(), self.cell + "_forward")
        weights = self._weights(layer, direction)
        if self.layer_norm:
            gains = ("gain_ih", "gain_hh", "gain_c", "bias_c")
            weights["norm"] = tuple([weights.pop(g) for g in gains if g in weights])
        weights |= self.options
        weights |= {"keep": keep, "h_mask": h_mask, "reverse": bool(direction)}
        k = layer * self.directions + direction
        state = [a[k] for a in states]
        first, tapes = blocks[0].rows.start, []
        for block in reversed(blocks) if direction else blocks:
            rows = slice(block.rows.start - first, block.rows.stop - first)
            _, *state, tape = forward(cut(x, rows), block.sizes, *state, **weights,
                                      resets=cut(resets, rows), out=cut(out, rows))  # fmt: skip
            tapes.append(tape)
        for a, new in zip(states, state, strict=True):
            a[k] = new
        return tapes

    # ---- BPTT ------------------------------------------------------------------------------

    def backward(self, tape, doutput, dstate=None, *, need_dx=True):
        """Back-propagation through time: adds into `grads`.

        Parameters
        ----------
        tape : Tape
            Of one call of `forward`.
        doutput : array or None
            dE/doutput, shaped like the output; what lies past a sequence's end is ignored. None
            counts as zero.
        dstate : array or (array, array), optional
            dE/dstate of the final state(s); zero by default.
        need_dx : bool
            False: dE/dx is not computed and None is returned for it.

        Returns
        -------
        dx : array or None
            dE/dx, laid out like x, exactly 0 past each sequence's end; None for class indices.
        dstate : array or (array, array)
            dE/dstate of the initial state(s).
        """
        return self._backward(self.grads, tape, doutput, dstate, need_dx)

    def _backward(self, grads, tape, doutput, dstate, need_dx):
        """`backward` that adds into other arrays than those of `self.grads`, by the same names."""
        packing, unbatched = tape.packing, tape.unbatched
        N = packing.rows
        if doutput is None:
            dy = np.zeros((N, self.output_size), self.dtype)
        else:
            want = self._output_shape(packing, unbatched, True)
            dy = gradient(self._me, "doutput", doutput, want, self.dtype)
            dy = dy[:, None] if unbatched else dy.swapaxes(0, 1) if self.batch_first else dy
            dy = packing.pack_gradient(dy, tape.pad_output)
        states = self._states(dstate, packing.B, packing, unbatched)
        parts = []
        for segment in reversed(tape.segments):
            blocks = segment["blocks"]
            part = slice(blocks[0].rows.start, blocks[-1].rows.stop)
            kept = segment["layers"]
            if segment["before"] is not None:
                again = [a.copy() for a in segment["before"]]
                scratch = empty_array((part.stop - part.start, self.output_size), self.dtype)
                kept = self._segment(segment["x"], again, blocks, segment["resets"], packing,
                                     scratch, True, segment["seed"])  # fmt: skip
            parts.append(self._segment_backward(kept, cut(dy, part), states, blocks, grads,
                                                need_dx))  # fmt: skip
        dx = join(parts[::-1])
        if dx is not None:
            dx = packing.unpack(dx)
            dx = dx[:, 0] if unbatched else dx.swapaxes(0, 1) if self.batch_first else dx
        return dx, self._unstate(states, packing, unbatched)

    def _segment_backward(self, kept, dy, states, blocks, grads, need_dx):
        P, D = self.state_size, self.directions
        for layer in reversed(range(self.num_layers)):
            entry = kept[layer]
            if D == 1:
                parts = [dy]
            elif self.merge == "concat":
                parts = [dy[:, :P], dy[:, P:]]
            else:
                parts = merge_backward(self.merge, dy, entry["wide"])
            below = need_dx or layer > 0
            dxs = self._both(
                lambda d: self._direction_backward(layer, d, entry["tapes"][d],
                                                   np.ascontiguousarray(parts[d]), states, blocks,
                                                   grads, below), len(dy))  # fmt: skip
            dy = dxs[0] if D == 1 or dxs[0] is None else dxs[0] + dxs[1]
            if entry["masks"] is not None and dy is not None:
                dy = dy * entry["masks"]
        return dy

    def _direction_backward(self, layer, direction, tapes, dy, states, blocks, grads, need_dx):
        backward = getattr(_engine.functions(), f"{self.cell}_backward")
        grads = {key: grads[name] for key, name in self._names(layer, direction).items()}
        k = layer * self.directions + direction
        state = [a[k] for a in states]
        visited = list(reversed(blocks)) if direction else blocks
        first, x, dx = blocks[0].rows.start, tapes[0]["x"], None
        if need_dx and x.ndim == 2:
            dx = empty_array((len(dy), x.shape[1]), self.dtype)
        for block, tape in zip(reversed(visited), reversed(tapes), strict=True):
            rows = slice(block.rows.start - first, block.rows.stop - first)
            _, *state = backward(tape, cut(dy, rows), *state, grads, need_dx, out=cut(dx, rows))
        for a, new in zip(states, state, strict=True):
            a[k] = new
        return dx

    # ---- conveniences ----------------------------------------------------------------------

    def stream(self, batch_size=1):
        """A `Stream` of this layer: one time step or chunk at a time, the state kept inside."""
        return Stream(self, batch_size)

    def flatten_parameters(self):
        """Does nothing; here for code written for torch.nn."""

    def __repr__(self):
        parts = [f"{self.input_size}, {self.hidden_size}"]
        if self.num_layers > 1:
            parts.append(f"num_layers={self.num_layers}")
        for name in ("batch_first", "bidirectional", "layer_norm"):
            if getattr(self, name):
                parts.append(f"{name}=True")
        if not self.bias:
            parts.append("bias=False")
        if self.dropout:
            parts.append(f"dropout={self.dropout}")
        if self.proj_size:
            parts.append(f"proj_size={self.proj_size}")
        return f"{self._me}({', '.join(parts)}, dtype={self.dtype})"


class RNN(Recurrent):
    """Elman network: h_t = tanh(W_ih x_t + b_ih + W_hh h_{t-1} + b_hh), or with ReLU.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        As in `LSTM`.
    nonlinearity : {"tanh", "relu"}
        Fourth in order, as in torch.nn.RNN.
    dtype, seed, init, merge, input_dropout, recurrent_dropout, checkpoint_every
        As in `LSTM`.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> rnn = rnnfast.RNN(3, 5, seed=0)
    >>> y, h = rnn(np.zeros((7, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((7, 2, 5), (1, 2, 5))
    """

    cell = "rnn"

    def __init__(self, input_size, hidden_size, num_layers=1, nonlinearity="tanh", bias=True,
                 batch_first=False, dropout=0.0, bidirectional=False, *, dtype="float32", seed=None,
                 init="torch", merge="concat", input_dropout=0.0, recurrent_dropout=0.0,
                 checkpoint_every=None):  # fmt: skip
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity must be 'tanh' or 'relu', got {nonlinearity!r}")
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, dtype=dtype, seed=seed, init=init, merge=merge,
                         input_dropout=input_dropout, recurrent_dropout=recurrent_dropout,
                         checkpoint_every=checkpoint_every, nonlinearity=nonlinearity)  # fmt: skip


class LSTM(Recurrent):
    """Long short-term memory: c_t = f c_{t-1} + i g, h_t = o tanh(c_t).

    Hochreiter and Schmidhuber (1997) with the forget gate of Gers et al. (2000); the variants are
    those of Greff et al. (2017). Equations and gradients: docs/math.md.

    Parameters
    ----------
    input_size, hidden_size : int
        I and H, at least 1.
    num_layers : int
        Layers stacked on each other.
    bias : bool
        Whether there are bias vectors b_ih and b_hh.
    batch_first : bool
        Input and output are (B, T, ...) in place of (T, B, ...).
    dropout : float in [0, 1]
        Share of the input of every layer but the first that `forward` sets to zero, drawn anew for
        each step; the rest is multiplied by 1/(1 - dropout).
    bidirectional : bool
        A second network reads each sequence from its own end.
    proj_size : int
        P > 0: h_t = W_hr (o tanh(c_t)) of size P (Sak et al. 2014).
    dtype : {"float32", "float64"}
    seed : int or None
        For the initial weights and dropout.
    init : {"torch", "keras"}
        torch: all U(-1/sqrt(H), 1/sqrt(H)). keras: Glorot uniform W_ih, orthogonal W_hh, zero
        biases, forget bias 1.
    forget_bias : float or None
        Initial bias of the forget gate, in every layer and direction.
    merge : {"concat", "sum", "mul", "average"}
        How the two directions' outputs become one.
    layer_norm : bool
        Normalise W_ih x, W_hh h and c inside tanh (Ba et al. 2016).
    peephole : bool
        i and f see c_{t-1}, o sees c_t (Gers and Schmidhuber 2000).
    coupled : bool
        f = 1 - i; the stacked gates are then i g o.
    gate : {"sigmoid", "hard_sigmoid", "hard_sigmoid_onnx"}
        Activation of the gates: the logistic function; relu6(x + 3)/6; or 0.2 x + 0.5 in [0, 1].
    cell_clip : float
        c is clamped to [-cell_clip, cell_clip] where positive.
    input_dropout, recurrent_dropout : float in [0, 1]
        Variational dropout of `forward`: one mask per sequence, the same at every step, on each
        layer's input and on the h that W_hh reads (Gal and Ghahramani 2016).
    checkpoint_every : int or None
        Keep only the states every so many steps (rounded up to whole blocks) and compute the rest
        again in `backward`: the same bits, less memory. With both directions nothing is saved.

    Attributes
    ----------
    params, grads : dict
        weight_ih_l0 (4H, I), weight_hh_l0 (4H, P), bias_ih_l0, bias_hh_l0 (4H,), ... with the
        names, shapes and gate order (i f g o) of torch.nn.LSTM, "_reverse" for the second
        direction.
    directions, state_size, output_size : int
        1 or 2; the size of h; features of the output at each step.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> lstm = rnnfast.LSTM(3, 5, num_layers=2, seed=0)
    >>> x = np.ones((7, 2, 3), np.float32)
    >>> y, (h, c), tape = lstm.forward(x, lengths=[7, 4])
    >>> y.shape, h.shape, bool((y[4:, 1] == 0).all())
    ((7, 2, 5), (2, 2, 5), True)
    >>> dx, (dh, dc) = lstm.backward(tape, np.ones_like(y))
    >>> dx.shape, lstm.grads["weight_hh_l1"].shape
    ((7, 2, 3), (20, 5))
    """

    cell = "lstm"
    gates = 4
    states = 2

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
                 dropout=0.0, bidirectional=False, proj_size=0, *, dtype="float32", seed=None,
                 init="torch", forget_bias=None, merge="concat", layer_norm=False, peephole=False,
                 coupled=False, gate="sigmoid", cell_clip=0.0, input_dropout=0.0,
                 recurrent_dropout=0.0, checkpoint_every=None):  # fmt: skip
        _check_gate(gate)
        self.peephole = bool(peephole)
        self.gates = 3 if coupled else 4
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, proj_size, dtype=dtype, seed=seed, init=init,
                         forget_bias=forget_bias, merge=merge, layer_norm=layer_norm,
                         input_dropout=input_dropout, recurrent_dropout=recurrent_dropout,
                         checkpoint_every=checkpoint_every, gate=gate, coupled=bool(coupled),
                         clip=float(cell_clip))  # fmt: skip

    def _shapes(self, layer):
        shapes, H = super()._shapes(layer), self.hidden_size
        if self.peephole:
            shapes["peephole"] = ("peephole", (3, H))
        if self.layer_norm:
            shapes |= {"gain_c": ("gain_c", (H,)), "bias_c": ("bias_c", (H,))}
        return shapes

    def _set_forget_bias(self, names, value):
        if self.bias and not self.options_coupled:
            forget = slice(self.hidden_size, 2 * self.hidden_size)
            self.params[names["b_ih"]][forget] = value
            self.params[names["b_hh"]][forget] = 0

    @property
    def options_coupled(self):
        """Whether f = 1 - i."""
        return self.gates == 3


class GRU(Recurrent):
    """Gated recurrent unit: h_t = (1 - z) n + z h_{t-1}.

    Cho et al. (2014), https://arxiv.org/abs/1406.1078. Equations and gradients: docs/math.md.

    Parameters
    ----------
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        As in `LSTM`.
    reset_after : bool
        True: n = tanh(W_n x + b_in + r (U_n h + b_hn)), as torch and cuDNN have it. False: the
        paper's n = tanh(W_n x + b_in + b_hn + U_n (r h)).
    layer_norm : bool
        Normalise W_ih x and W_hh h (Ba et al. 2016); needs reset_after.
    gate : {"sigmoid", "hard_sigmoid", "hard_sigmoid_onnx"}
        Activation of r and z.
    dtype, seed, init, merge, input_dropout, recurrent_dropout, checkpoint_every
        As in `LSTM`.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> gru = rnnfast.GRU(3, 5, bidirectional=True, seed=0)
    >>> y, h = gru(np.ones((7, 2, 3), np.float32))
    >>> y.shape, h.shape
    ((7, 2, 10), (2, 2, 5))
    """

    cell = "gru"
    gates = 3

    def __init__(self, input_size, hidden_size, num_layers=1, bias=True, batch_first=False,
                 dropout=0.0, bidirectional=False, *, reset_after=True, dtype="float32", seed=None,
                 init="torch", merge="concat", layer_norm=False, gate="sigmoid",
                 input_dropout=0.0, recurrent_dropout=0.0, checkpoint_every=None):  # fmt: skip
        _check_gate(gate)
        if layer_norm and not reset_after:
            raise ValueError("GRU: layer_norm needs reset_after=True")
        super().__init__(input_size, hidden_size, num_layers, bias, batch_first, dropout,
                         bidirectional, dtype=dtype, seed=seed, init=init, merge=merge,
                         layer_norm=layer_norm, input_dropout=input_dropout,
                         recurrent_dropout=recurrent_dropout, checkpoint_every=checkpoint_every,
                         reset_after=bool(reset_after), gate=gate)  # fmt: skip


GATES = ("sigmoid", "hard_sigmoid", "hard_sigmoid_onnx")


def _check_gate(gate):
    if gate not in GATES:
        raise ValueError(f"gate must be one of {GATES}, got {gate!r}")


class Stream(Steps):
    """A layer that keeps its state between calls: input comes as it happens.

    Parameters
    ----------
    layer : RNN, LSTM or GRU
        Of one direction. The stream has a copy of its weights: later changes do not reach it.
    batch_size : int
        Sequences that run side by side.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> layer = rnnfast.GRU(3, 5, seed=0)
    >>> x = np.ones((4, 1, 3), np.float32)
    >>> s = layer.stream()
    >>> parts = [s.step(x[0]), *s.process(x[1:])]
    >>> bool((np.stack(parts) == layer(x)[0]).all())
    True
    """

    def __init__(self, layer, batch_size=1):
        if layer.bidirectional:
            raise ValueError("a bidirectional layer cannot be streamed: it reads from the end")
        self.batch_size = _positive("batch_size", batch_size)
        self.layer = copy.copy(layer)
        self.layer.params = {name: a.copy() for name, a in layer.params.items()}
        self._stack = self.layer._packed(self.batch_size, 1) if layer._stackable() else None
        super().__init__(self._stack)
        self.reset()

    def reset(self):
        """Back to the zero state."""
        if self._stack is not None:
            self._stack.reset()
        n, B = self.layer.num_layers, self.batch_size
        self._state = [np.zeros((n, B, k), self.layer.dtype) for k in self.layer._state_sizes()]

    @property
    def state(self):
        """State(s) as a layer takes and returns them, copies; may be set."""
        arrays = self._state if self._stack is None else self._stack.get_state()
        arrays = [a.copy() for a in arrays]
        return arrays[0] if len(arrays) == 1 else tuple(arrays)

    @state.setter
    def state(self, state):
        B = self.batch_size
        arrays = self.layer._states(state, B, Packing(1, B), False)
        if self._stack is None:
            self._state = arrays
        else:
            self._stack.set_state(arrays)

    def _step(self, x, out):
        """`step` where it is not one kernel per layer."""
        x = np.asarray(x)
        y = self.process(x[None])[0]
        if out is None:
            return y
        out[...] = y
        return out

    def process(self, x):
        """Output (T, B, features) for a chunk (T, B, I), or (T, B) class indices."""
        layer = self.layer
        x = np.asarray(x)
        if x.ndim < 2 or x.shape[1] != self.batch_size:
            raise ValueError(f"Stream: expected a batch of {self.batch_size}, got {x.shape}")
        if layer.batch_first:
            x = x.swapaxes(0, 1)
        if self._stack is None:
            state = self._state[0] if len(self._state) == 1 else tuple(self._state)
            y, new = layer(x, state)
            self._state = [new] if len(self._state) == 1 else list(new)
            return y.swapaxes(0, 1) if layer.batch_first else y
        rows, _, packing, _, _ = layer._arrange(x, None, None, None)
        y = empty_array((packing.T, packing.B, layer.output_size), layer.dtype)
        self._stack.run(rows, packing.T, y)
        return y


# ---- cells: one step, torch.nn's parameter names ---------------------------------------------


class Cell(Module):
    """One time step with torch.nn's parameter names weight_ih, weight_hh, bias_ih, bias_hh.

    ``cell(x, state)`` gives the new state; ``forward`` and ``backward`` as in the layers.
    """

    layer_type = None

    def __init__(self, input_size, hidden_size, bias=True, *, dtype="float32", seed=None,
                 **options):  # fmt: skip
        super().__init__(dtype)
        self.layer = self.layer_type(input_size, hidden_size, bias=bias, dtype=dtype, seed=seed,
                                     **options)  # fmt: skip
        self.params = {k.removesuffix("_l0"): v for k, v in self.layer.params.items()}
        self.grads = {k.removesuffix("_l0"): v for k, v in self.layer.grads.items()}

    def __call__(self, x, state=None):
        """New state for input (B, I) or (I,): h, or (h, c) for an LSTM."""
        return self.forward(x, state, keep=False)[0]

    def forward(self, x, state=None, *, keep=True):
        """(new state, tape) for input (B, I) or (I,)."""
        x = np.asarray(x)
        single = x.ndim == 1
        if state is not None:
            state = tuple(np.asarray(s)[None] for s in state) if self.layer.states == 2 \
                else np.asarray(state)[None]  # fmt: skip
        if self.layer.batch_first or x.ndim not in (1, 2):
            raise ValueError(f"{type(self).__name__}: x must be (B, I) or (I,), got {x.shape}")
        run = self.layer.forward if keep else self.layer
        _, new, *tape = run(x[None], state)
        new = tuple(s[0] for s in new) if self.layer.states == 2 else new[0]
        return new, (tape[0] if tape else None, single)

    def backward(self, tape, dstate):
        """(dx, dstate of the old state) from dE/d(new state); adds into `grads`."""
        tape, _ = tape
        dstate = tuple(np.asarray(s)[None] for s in dstate) if self.layer.states == 2 \
            else np.asarray(dstate)[None]  # fmt: skip
        dx, before = self.layer.backward(tape, None, dstate)
        before = tuple(s[0] for s in before) if self.layer.states == 2 else before[0]
        return dx[0], before


class RNNCell(Cell):
    """h' = tanh(W_ih x + b_ih + W_hh h + b_hh).

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> cell = rnnfast.RNNCell(3, 5, seed=0)
    >>> cell(np.ones((2, 3), np.float32)).shape
    (2, 5)
    """

    layer_type = RNN

    def __init__(self, input_size, hidden_size, bias=True, nonlinearity="tanh", *, dtype="float32",
                 seed=None):  # fmt: skip
        super().__init__(input_size, hidden_size, bias, dtype=dtype, seed=seed,
                         nonlinearity=nonlinearity)  # fmt: skip


class LSTMCell(Cell):
    """One step of an `LSTM`; the state is (h, c).

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> h, c = rnnfast.LSTMCell(3, 5, seed=0)(np.ones((2, 3), np.float32))
    >>> h.shape, c.shape
    ((2, 5), (2, 5))
    """

    layer_type = LSTM


class GRUCell(Cell):
    """One step of a `GRU`.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> rnnfast.GRUCell(3, 5, seed=0)(np.ones((2, 3), np.float32)).shape
    (2, 5)
    """

    layer_type = GRU


# ---- layers without recurrence -----------------------------------------------------------------


class Linear(Module):
    """y = x W^T + b over the last axis.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    dtype : {"float32", "float64"}
    seed : int or None
        Weights and bias start as U(-1/sqrt(in), 1/sqrt(in)).

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> lin = rnnfast.Linear(3, 2, seed=0)
    >>> y, tape = lin.forward(np.ones((4, 5, 3), np.float32))
    >>> lin.backward(tape, np.ones_like(y)).shape
    (4, 5, 3)
    """

    def __init__(self, in_features, out_features, bias=True, *, dtype="float32", seed=None):
        super().__init__(dtype)
        self.in_features = _positive("in_features", in_features)
        self.out_features = _positive("out_features", out_features)
        rng, bound = np.random.default_rng(seed), 1 / math.sqrt(in_features)
        self._add("weight", rng.uniform(-bound, bound, (out_features, in_features)))
        if bias:
            self._add("bias", rng.uniform(-bound, bound, out_features))

    def __call__(self, x):
        """y for x (..., in_features)."""
        return self.forward(x)[0]

    def forward(self, x):
        """(y, tape)."""
        x = real_array("Linear", "x", x, self.dtype)
        if x.ndim == 0 or x.shape[-1] != self.in_features:
            raise ValueError(f"Linear: x has shape {x.shape}, weight expects {self.in_features} "
                             "features")  # fmt: skip
        rows = x.reshape(-1, self.in_features)
        y = _engine.functions().linear_forward(rows, self.params["weight"], self.params.get("bias"))
        return y.reshape(*x.shape[:-1], self.out_features), (rows, x.shape)

    def backward(self, tape, dy, *, need_dx=True):
        """dE/dx; adds into `grads`."""
        rows, shape = tape
        want = (*shape[:-1], self.out_features)
        dy = gradient("Linear", "dy", dy, want, self.dtype).reshape(len(rows), self.out_features)
        dx = _engine.functions().linear_backward(rows, self.params["weight"], dy, self.grads,
                                                 need_dx)  # fmt: skip
        return None if dx is None else dx.reshape(shape)

    def __repr__(self):
        return f"Linear({self.in_features}, {self.out_features}, dtype={self.dtype})"


class Embedding(Module):
    """A table of vectors looked up by index.

    Parameters
    ----------
    num_embeddings, embedding_dim : int
    dtype : {"float32", "float64"}
    seed : int or None
        Entries start as N(0, 1).

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> table = rnnfast.Embedding(10, 4, seed=0)
    >>> y, tape = table.forward(np.array([[1, 1], [7, 0]]))
    >>> y.shape
    (2, 2, 4)
    >>> table.backward(tape, np.ones_like(y))
    >>> float(table.grads["weight"][1, 0])
    2.0
    """

    def __init__(self, num_embeddings, embedding_dim, *, dtype="float32", seed=None):
        super().__init__(dtype)
        self.num_embeddings = _positive("num_embeddings", num_embeddings)
        self.embedding_dim = _positive("embedding_dim", embedding_dim)
        rng = np.random.default_rng(seed)
        self._add("weight", rng.standard_normal((num_embeddings, embedding_dim)))

    def __call__(self, ids):
        """(..., embedding_dim) for integers (...) in [0, num_embeddings)."""
        return self.forward(ids)[0]

    def forward(self, ids):
        """(vectors, tape)."""
        from rnnfast import _seq

        ids = np.asarray(ids)
        if ids.dtype.kind not in "iu":
            raise TypeError(f"Embedding: indices must be integers, got {ids.dtype}")
        flat = np.ascontiguousarray(ids.ravel(), np.int64)
        out = empty_array((flat.size, self.embedding_dim), self.dtype)
        _seq.gather(flat, self.params["weight"], out)
        return out.reshape(*ids.shape, self.embedding_dim), (flat, ids.shape)

    def backward(self, tape, dy):
        """Add dE/dweight; rows that were looked up several times add up."""
        from rnnfast import _seq

        flat, shape = tape
        dy = gradient("Embedding", "dy", dy, (*shape, self.embedding_dim), self.dtype)
        _seq.scatter_add(flat, dy.reshape(flat.size, self.embedding_dim), self.grads["weight"])


# ---- helpers -------------------------------------------------------------------------------------


def inverted_dropout(seed, shape, rate, dtype):
    """Zeros with probability `rate`, else 1/(1 - rate), from a seed."""
    scale = dtype.type(0 if rate == 1 else 1 / (1 - rate))
    keep = np.random.default_rng(seed).random(shape, np.float32) >= rate
    return keep * scale


def cut(a, rows):
    """a[rows]; where that is all of it a itself, and None where a is: most calls have one block of
    steps, and a view takes longer than the arithmetic of a small one."""
    return a if a is None or rows.stop - rows.start == len(a) else a[rows]


def join(parts):
    """Consecutive rows as one array; None where the parts are None."""
    return parts[0] if len(parts) == 1 or parts[0] is None else np.concatenate(parts)


def merge_forward(merge, a, b, out):
    """Two directions' outputs as one."""
    if merge == "mul":
        np.multiply(a, b, out=out)
    else:
        np.add(a, b, out=out)
        if merge == "average":
            out *= out.dtype.type(0.5)


def merge_backward(merge, dy, wide):
    """The gradient of each direction's output."""
    if merge == "mul":
        P = wide.shape[1] // 2
        return [dy * wide[:, P:], dy * wide[:, :P]]
    return [dy, dy] if merge == "sum" else [dy * dy.dtype.type(0.5)] * 2


def last_output(y, lengths=None, axis=0):
    """The output at each sequence's last step.

    Parameters
    ----------
    y : array
        (T, B, F), or (B, T, F) with axis=1, or (T, F).
    lengths : (B,) integers, optional
        Steps of each sequence; a sequence of length 0 gives zeros.
    axis : {0, 1}
        Where time is.

    Returns
    -------
    (B, F) array, or (F,)

    Notes
    -----
    For a bidirectional layer the reverse half of this row has read one step only; its summary of
    the sequence is in the final state.

    Examples
    --------
    >>> import numpy as np, rnnfast
    >>> y = np.arange(6.0).reshape(3, 2, 1)
    >>> rnnfast.last_output(y, [1, 3]).ravel().tolist()
    [0.0, 5.0]
    """
    y = np.asarray(y)
    if y.ndim == 2:
        return last_output(y[:, None], None if lengths is None else np.ravel(lengths))[0]
    if axis == 1:
        y = y.swapaxes(0, 1)
    if lengths is None:
        return y[-1].copy()
    lengths = np.asarray(lengths)
    last = y[np.maximum(lengths - 1, 0), np.arange(y.shape[1])]
    last[lengths == 0] = 0
    return last


def glorot_uniform(rng, shape):
    """U(-a, a) with a = sqrt(6 / (rows + columns)) (Glorot and Bengio, 2010)."""
    bound = math.sqrt(6 / sum(shape))
    return rng.uniform(-bound, bound, shape)


def orthogonal(rng, shape):
    """A random matrix with orthonormal columns or rows (Saxe et al., 2013)."""
    rows, columns = shape
    q, r = np.linalg.qr(rng.standard_normal((max(shape), min(shape))))
    q *= np.sign(np.diag(r))
    return q if rows >= columns else q.T
