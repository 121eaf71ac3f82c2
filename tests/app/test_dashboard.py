"""What the dashboard refuses before it serves anything, each in one line."""

import http.client
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from paretune.cli import main
from tests.conftest import write_study

streamlit = pytest.importorskip("streamlit")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(["dashboard", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_missing_extra_is_told_with_the_way_to_it(
    study_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("paretune.pipeline.machine.find_spec", lambda name: None)
    assert "dashboard: needs the package `streamlit`, which is not installed: `pip install " in refusal(capsys, str(study_file))


def test_a_busy_port_is_told(study_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"error: --port: {port} cannot be had (Address already in use)" in refusal(
            capsys, str(study_file), "--port", str(port)
        )


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "missing.yaml"), (["--memory", "much"], "--memory: `much` is no amount of memory")]
)
def test_what_cannot_be_opened_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    file = write_study(tmp_path) if arguments else tmp_path / "missing.yaml"
    assert message in refusal(capsys, str(file), *arguments)


def handshake(to: str, host: str, origin: str) -> int:
    """The status with which the socket that a page talks through is opened, or not."""
    connection = http.client.HTTPConnection(to, timeout=10)
    key = {
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Protocol": "streamlit",
    }
    headers = {"Host": host, "Origin": origin, "Connection": "Upgrade", "Upgrade": "websocket", **key}
    connection.request("GET", "/_stcore/stream", headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_serves_this_machine_alone_and_ends_by_a_signal(study_file: Path, number: signal.Signals, code: int) -> None:
    command = [sys.executable, "-m", "paretune.cli", "dashboard", str(study_file)]

    def heed() -> None:  # a shell that puts the tests into the background lets them ignore SIGINT, and all that they start
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        assert process.stderr is not None
        address = process.stderr.readline().split()[0]
        assert address.startswith("http://127.0.0.1:")
        for _ in range(100):
            try:
                with urllib.request.urlopen(f"{address}/_stcore/health") as answer:
                    assert answer.status == 200
                break
            except OSError:
                time.sleep(0.1)
        host = address.removeprefix("http://")
        assert handshake(host, host, address) == 101
        assert handshake(host, host, "http://elsewhere.example") == 403
        assert handshake(host, "elsewhere.example:8501", "http://elsewhere.example:8501") == 403
        process.send_signal(number)
        rest = process.stderr.read()
        assert process.wait(20) == code
    assert "Traceback" not in rest
