"""GPUs, labels and utilisation. The GPUs are a double where this machine has none."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sage.common.errors import ConfigError, UnavailableError
from sage.platform.nodes import (
    Gpu,
    GpuUse,
    Meter,
    find_gpus,
    inventory,
    parse_labels,
    use_of_gpus,
    utilisation,
)
from sage.platform.nodes.gpus import real_nvml
from sage.platform.nodes.labels import LABELS, check_labels
from sage.platform.nodes.usage import CpuTimes, busy_percent

GIB = 2**30
TIMES = st.dictionaries(
    st.integers(0, 7), st.builds(CpuTimes, st.floats(0, 1e6), st.floats(0, 1e6)), max_size=8
)


class TwoGpus:
    """NVML with two devices, or one that fails at a call."""

    def __init__(self, count: int = 2, broken: str = "") -> None:
        self._count = count
        self._broken = broken
        self.running = 0

    def _may(self, call: str) -> None:
        if call == self._broken:
            raise UnavailableError("GPU is lost")

    def start(self) -> None:
        self._may("start")
        self.running += 1

    def stop(self) -> None:
        self.running -= 1

    def count(self) -> int:
        return self._count

    def name(self, index: int) -> str:
        self._may("name")
        return f"Card {index}"

    def memory(self, index: int) -> tuple[int, int]:
        self._may("memory")
        return 80 * GIB, (60 + index) * GIB

    def percent(self, index: int) -> float | None:
        return 37.0 if index == 0 else None


def test_gpus_are_found_and_measured() -> None:
    nvml = TwoGpus()
    cards = (Gpu(0, "Card 0", 80 * GIB, 60 * GIB), Gpu(1, "Card 1", 80 * GIB, 61 * GIB))
    assert find_gpus(nvml) == (cards, "")
    uses = (GpuUse(0, 37.0, 20 * GIB, 80 * GIB), GpuUse(1, None, 19 * GIB, 80 * GIB))
    assert use_of_gpus(nvml) == (uses, "")
    assert nvml.running == 0
    node = inventory(nvml=nvml)
    assert node.gpus == cards
    assert utilisation(node, over=0, nvml=nvml).gpus == uses


@pytest.mark.parametrize("broken", ["start", "name", "memory"])
def test_a_gpu_that_fails_is_none_and_why(broken: str) -> None:
    nvml = TwoGpus(broken=broken)
    assert find_gpus(nvml) == ((), "none: GPU is lost")
    assert nvml.running == 0


def test_a_driver_without_a_device_is_none() -> None:
    assert find_gpus(TwoGpus(count=0)) == ((), "none: NVML reports no device")


def test_the_real_library_finds_gpus_or_says_why_not() -> None:
    gpus, note = find_gpus(real_nvml())
    uses, same = use_of_gpus()
    assert note == same
    assert bool(gpus) != note.startswith("none: ")
    for gpu, use in zip(gpus, uses, strict=True):
        assert gpu.memory_total == use.memory_total
        assert use.percent is None or 0 <= use.percent <= 100


def test_what_this_machine_does(tmp_path: Path) -> None:
    node = inventory(tmp_path)
    meter = Meter(node)
    for _ in range(2):
        now = meter.read()
        assert set(now.cores) == set(node.cpus)
        assert all(0 <= percent <= 100 for percent in now.cores.values())
    assert len(now.load) == 3
    assert 0 < now.memory_used < now.memory_total == node.memory_total
    assert 0 < now.disk_used <= now.disk_total == shutil.disk_usage(tmp_path).total
    assert now.gpu_note == node.gpu_note


def test_a_busy_core_is_seen() -> None:
    node = inventory()
    core = node.cpus[0]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        meter = Meter(node)
        begin = os.times().user
        while os.times().user - begin < 0.3:
            pass
        assert meter.read().cores[core] > 50
    finally:
        os.sched_setaffinity(0, before)


@given(TIMES, TIMES)
def test_percent_is_percent_whatever_the_counters_say(
    before: dict[int, CpuTimes], now: dict[int, CpuTimes]
) -> None:
    shares = busy_percent(before, now)
    assert shares.keys() == before.keys() & now.keys()
    assert all(0 <= share <= 100 for share in shares.values())


def test_percent_of_the_time_between() -> None:
    assert busy_percent({0: CpuTimes(1, 10)}, {0: CpuTimes(2, 14), 1: CpuTimes(0, 9)}) == {0: 25.0}
    assert busy_percent({0: CpuTimes(1, 10)}, {0: CpuTimes(1, 10)}) == {0: 0.0}


def test_labels_of_environment_and_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LABELS, " zone=b , disk=nvme-1,empty=")
    labels = inventory(labels={"zone": "a", "team/owner": "search"}).labels
    assert {key: labels[key] for key in ("zone", "disk", "empty", "team/owner")} == {
        "zone": "b",
        "disk": "nvme-1",
        "empty": "",
        "team/owner": "search",
    }
    assert labels["os"] == "linux"
    assert parse_labels("") == parse_labels(" , ") == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("zone", "'zone' has no value; valid is KEY=VALUE"),
        ("a=1,a=2", "'a' is given twice"),
        ("os=plan9", "'os' is set by SAGE itself"),
        ("Zone=a", "the key 'Zone' is not valid: 1 to 63 of a-z"),
        ("-a=1", "the key '-a' is not valid"),
        ("a=b c", "'a' is 'b c', which is not valid: up to 63 of"),
        ("a=" + "x" * 64, "is not valid: up to 63"),
        ("=x", "the key '' is not valid"),
    ],
)
def test_labels_that_are_none_are_refused(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_labels(text)
    assert said in caught.value.message
    assert caught.value.message.startswith("Node labels in SAGE_NODE_LABELS: ")


def test_all_that_is_wrong_is_told_at_once_and_their_number_bounded() -> None:
    with pytest.raises(ConfigError, match=r"'x' has no value.*'arch' is set.*the key 'B' is not"):
        parse_labels("x,arch=z,B=1")
    with pytest.raises(ConfigError, match="there are 65 labels; valid are up to 64"):
        check_labels({f"k{n}": "" for n in range(65)}, "a test")


@given(st.text(max_size=40))
def test_any_text_is_labels_or_one_error(text: str) -> None:
    try:
        labels = parse_labels(text)
    except ConfigError:
        return
    assert parse_labels(",".join(f"{key}={value}" for key, value in labels.items())) == labels
