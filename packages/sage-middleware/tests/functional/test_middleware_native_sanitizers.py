import shutil
import subprocess
from pathlib import Path

import pytest

CPP = Path(__file__).parents[2] / "cpp"


@pytest.mark.slow
@pytest.mark.parametrize("check", sorted(path.stem for path in CPP.glob("check_*.cpp")))
@pytest.mark.skipif(not shutil.which("g++"), reason="needs g++ with its sanitizer runtimes")
def test_the_cores_are_clean_under_address_and_undefined_behaviour_sanitizers(
    check: str, tmp_path: Path
) -> None:
    program = tmp_path / check
    flags = ["-std=c++20", "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    subprocess.run(
        ["g++", *flags, "-fno-sanitize-recover", f"-I{CPP}", str(CPP / f"{check}.cpp"), "-o", str(program)],
        check=True,
    )
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cases agree" in done.stdout
