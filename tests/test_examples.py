"""Every example runs by itself and has learnt what it claims."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.optional import skip_for

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NUMBER = r"([-+\d.e]+|nan|inf)"

# pattern in what is printed, the figure's bounds
CLAIMS = {
    "01_feed_forward": [("wrong: (.*) of 16", 0, 0), ("wrong classes: (.*) of 16", 0, 0)],
    "02_step": [("as it is now': NUMBER", 0.15, 0.3), ("error of the forecast: +NUMBER", 0, 0.08)],
    "03_elman": [("at a consonant: NUMBER", 1.0, 1.25), ("at a vowel: +NUMBER", 0, 0.05)],
    "04_output_recurrence": [
        ("teacher forcing: +NUMBER", 0, 0.08),
        ("BPTT through o: +NUMBER", 0, 0.06),
        ("deviation of y: +NUMBER", 0.4, 0.6),
    ],
    "05_sequence_to_one": [
        ("regressor: mean square error NUMBER", 0, 0.02),
        ("classifier: right for NUMBER %", 97, 100),
    ],
    "06_deep_bidirectional": [
        ("LSTM, forwards only: +right at NUMBER %", 60, 82),
        ("LSTM, both directions: +right at NUMBER %", 92, 100),
        ("RNN, both directions, 2 layers: +right at NUMBER %", 92, 100),
        ("LSTM, both directions, 2 layers: +right at NUMBER %", 92, 100),
    ],
    "07_losses": [
        ("E at z = -1000, computed from z: NUMBER", 1000, 1000),
        (r"quadratic: largest \|o - d\| after 1000 steps: NUMBER", 0.5, 1),
        (r"cross_entropy: largest \|o - d\| after 1000 steps: NUMBER", 0, 0.01),
    ],
    "08_clipping": [
        ("answering 0 all the time has loss NUMBER", 0.64, 0.65),
        (r"nothing:.*\n +median loss: NUMBER", 0.55, float("inf")),
        (r"value:.*\n +median loss: NUMBER", 0, 0.4),
        (r"norm:.*\n +median loss: NUMBER", 0, 0.5),
    ],
    "09_optimisers_and_tbptt": [
        ("k2 =  5: NUMBER bits", 0.95, 1.1),
        ("k2 = 15: NUMBER bits", 0, 0.2),
        ("SGD .*momentum.* NUMBER bits", 0, 0.75),
        ("Adam .* NUMBER bits", 0, 0.2),
        ("AdamW .* NUMBER bits", 0, 0.2),
        ("RMSprop .* NUMBER bits", 0, 0.2),
        ("Adagrad .* NUMBER bits", 0, 0.2),
    ],
    "10_character_model": [
        ("by frequency: NUMBER bits", 4.4, 4.9),
        ("the model: NUMBER bits", 2, 3.6),
    ],
    "11_variable_lengths": [
        ("never seen: NUMBER", 0, 8),
        ("reading each alone: NUMBER", 0, 1e-3),
        ("steps computed: NUMBER,", 2200, 2200),
    ],
    "12_swap_a_torch_layer": [
        ("torch: +loss NUMBER bits", 4.3, 5.3),
        ("difference of the outputs: NUMBER", 0, 1e-5),
        ("rnnfast: loss NUMBER bits", 3, 4.3),
    ],
    "13_two_processes": [
        ("1 at work: loss .*then NUMBER bits", 3, 4.3),
        ("2 at work: loss .*then NUMBER bits", 3, 4.3),
        ("of losses and weights: NUMBER", 0, 1e-3),
    ],
    "20_sunspots": [
        ("as eleven years earlier: mean absolute error NUMBER", 26.9, 26.9),
        ("linear autoregression  : mean absolute error NUMBER", 23.5, 23.8),
        ("mean of the five       : mean absolute error NUMBER", 20, 26.5),
    ],
    "21_digit_rows": [
        ("on the 64 pixels: NUMBER %", 95, 97.5),
        ("both directions: NUMBER %", 96.5, 100),
        (r"more than 99 % sure of \d+ of 899 digits: NUMBER %", 98.5, 100),
    ],
    "22_python_source": [
        ("commonest class: right at NUMBER %", 40, 70),
        ("bidirectional GRU: right at NUMBER %", 90, 100),
        ("comment +NUMBER %", 80, 100),
    ],
    "23_co2_trend": [
        ("this week again +: mean absolute error NUMBER", 1.7, 1.8),
        ("linear autoregression +: mean absolute error NUMBER", 0.38, 0.4),
        ("levels as they are +: mean absolute error NUMBER", 1, 10),
        ("relative to now +: mean absolute error NUMBER", 0.4, 0.61),
    ],
    "24_dask": [
        ("always 4: NUMBER %", 7, 13),
        ("the best, in 5 blocks: NUMBER %", 94, 100),
        ("differences from scoring here: NUMBER", 0, 0),
    ],
}

NEEDS = {"12_swap_a_torch_layer": "torch", "13_two_processes": "torch"}


def test_every_example_has_its_claim():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(CLAIMS)


@pytest.mark.parametrize("name", CLAIMS)
def test_example(name, tmp_path):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    # one thread: products this small gain nothing by two, and tests share the machine
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    if sys.platform == "linux":  # gloo warns where the machine's own name cannot be looked up
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    command = [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True,
                         encoding="utf-8", timeout=300)  # fmt: skip
    if run.returncode:
        skip_for(run.stderr)
    assert run.returncode == 0, run.stderr
    assert not run.stderr
    assert not list(tmp_path.iterdir()), "an example leaves no files behind"
    for pattern, low, high in CLAIMS[name]:
        found = re.search(pattern.replace("NUMBER", NUMBER), run.stdout)
        assert found, f"{pattern!r} is not in\n{run.stdout}"
        assert low <= float(found[1]) <= high, f"{pattern!r}: {found[0]}"


@pytest.mark.parametrize("name", CLAIMS)
def test_short_enough_to_read(name):
    assert len((EXAMPLES / f"{name}.py").read_text().splitlines()) <= 60
