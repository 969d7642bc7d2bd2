from __future__ import annotations

from pathlib import Path

import pytest

from server.reading.flags import GROUPS, flag
from server.settings import Settings, SettingsError, read_settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "latentd.yaml"


def test_the_defaults_are_those_of_the_documents() -> None:
    settings = read_settings([], {})
    assert settings == Settings()
    assert (settings.host, settings.grpc_port, settings.metrics_port) == ("127.0.0.1", 8001, 8002)
    assert (settings.max_prompt, settings.max_steps, settings.max_guidance, settings.max_images) == (4096, 150, 30, 8)
    assert (settings.max_message, settings.queue_jobs, settings.queue_seconds) == (16 << 20, 256, 60)
    assert (settings.device, settings.precision, settings.pixels) == ("auto", "auto", "auto")


def test_flag_before_environment_before_file_before_default(file: Path) -> None:
    file.write_text("seats: 3\ngrace: 1.5\nhost: ::1\nsizes: [64x64, 96x64]\n")
    environment = {"LATENTD_CONFIG": str(file), "LATENTD_SEATS": "5", "LATENTD_GRPC_PORT": "7001"}
    settings = read_settings(["--grpc-port", "7002"], environment)
    assert (settings.grpc_port, settings.seats, settings.grace, settings.host) == (7002, 5, 1.5, "::1")
    assert settings.sizes == ((64, 64), (96, 64)) and settings.threads == Settings().threads


def test_the_files_name_is_a_flag_too(file: Path, tmp_path: Path) -> None:
    file.write_text("seats: 3")
    other = tmp_path / "other.yaml"
    other.write_text("seats: 4")
    assert read_settings(["--config", str(other)], {"LATENTD_CONFIG": str(file)}).seats == 4


def test_an_empty_variable_and_an_empty_file_say_nothing(file: Path) -> None:
    file.write_text("# nothing yet\n")
    assert read_settings(["--config", str(file)], {"LATENTD_SEATS": ""}) == Settings()


@pytest.mark.parametrize(
    ("argv", "environment", "told"),
    [
        (["--seats", "0"], {}, "--seats is '0'; it takes an integer from 1 to 1024"),
        (["--seats", "many"], {}, "--seats is 'many'; it takes an integer from 1 to 1024"),
        (["--chunks", "5"], {}, "--chunks is '5'; it takes an integer from 1 to 4, or several as 1,2"),
        (["--chunks", "1,"], {}, "--chunks is '1,'; it takes an integer from 1 to 4"),
        (["--grpc-port", "65536"], {}, "--grpc-port is '65536'; it takes an integer from 0 to 65535"),
        (["--grace", "nan"], {}, "--grace is 'nan'; it takes a number from 0 to 86400"),
        (["--sizes", "512"], {}, "--sizes is '512'; it takes sizes as 512x512,768x512"),
        (["--otlp", "localhost:4318"], {}, "--otlp is 'localhost:4318'; it takes a URL as http://localhost:4318"),
        (["--otlp", "http://a:99999"], {}, "--otlp is 'http://a:99999'; it takes a URL as http://localhost:4318"),
        (["--otlp", "http://me:secret@a"], {}, "--otlp is 'http://me:secret@a'; it takes a URL as "),
        (["--trace-ratio", "1.5"], {}, "--trace-ratio is '1.5'; it takes a number from 0 to 1"),
        (["--trace-prompts", "perhaps"], {}, "--trace-prompts is 'perhaps'; it takes on or off"),
        ([], {"LATENTD_BACKEND": "cuda"}, "LATENTD_BACKEND is 'cuda'; it takes one of auto, "),
        ([], {"LATENTD_PIXELS": "best"}, "LATENTD_PIXELS is 'best'; it takes one of auto, exact, fast"),
    ],
)
def test_a_bad_value_is_told_with_its_source_and_what_is_taken(argv, environment, told) -> None:
    with pytest.raises(SettingsError) as refused:
        read_settings(argv, environment)
    assert str(refused.value).startswith(told)


def test_a_bad_value_in_the_file_names_file_and_key(file: Path) -> None:
    file.write_text("threads: -1")
    with pytest.raises(SettingsError) as refused:
        read_settings(["--config", str(file)], {})
    assert str(refused.value) == f"{file}: threads is '-1'; it takes an integer from 0 to 1024"


@pytest.mark.parametrize("written", ["seat: 3", "seats: 3\nbogus: 1\nseat: 2"])
def test_unknown_keys_are_named_beside_those_there_are(written: str, file: Path) -> None:
    file.write_text(written)
    told = r"has unknown keys: (bogus, )?seat(; did you mean seats\?)?; there are: .*seats, sizes"
    with pytest.raises(SettingsError, match=told):
        read_settings(["--config", str(file)], {})


@pytest.mark.parametrize(
    "written", [b"- 1\n- 2", b"just text", b"a: [", b"\xff\xfe\xff", b"{seats: 1, seats", b"? [a]"]
)
def test_a_file_that_is_none_is_one_sentence(written: bytes, file: Path) -> None:
    file.write_bytes(written)
    with pytest.raises(SettingsError, match=str(file)) as refused:
        read_settings(["--config", str(file)], {})
    assert "\n" not in str(refused.value)


def test_a_file_that_is_missing_is_named(file: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=f"^--config is '{file}', and there is no such file$"):
        read_settings(["--config", str(file)], {})
    with pytest.raises(SettingsError, match=f"^LATENTD_CONFIG is '{file}', and there is no such file$"):
        read_settings([], {"LATENTD_CONFIG": str(file)})
    with pytest.raises(SettingsError, match=f"^--config is '{tmp_path}', which cannot be read: Is a directory$"):
        read_settings(["--config", str(tmp_path)], {})


@pytest.mark.parametrize("name", ["model", "style-adapter", "judge"])
def test_a_url_is_no_path(name: str) -> None:
    words = "it takes a path on this machine: nothing is downloaded"
    with pytest.raises(SettingsError, match=f"^--{name} is 'https://example.org/a.safetensors'; {words}$"):
        read_settings([f"--{name}", "https://example.org/a.safetensors"], {})


def test_a_switch_is_what_yaml_makes_of_it(file: Path) -> None:
    file.write_text("trace_prompts: on\notlp: https://collector.example.org/otlp")
    settings = read_settings(["--config", str(file)], {})
    assert settings.trace_prompts is True and settings.otlp == "https://collector.example.org/otlp"
    assert read_settings(["--trace-prompts", "off", "--config", str(file)], {}).trace_prompts is False


def test_sizes_are_kept_in_order_and_once() -> None:
    assert read_settings(["--sizes", "64x32, 32x64,64x32"], {}).sizes == ((64, 32), (32, 64))


def test_chunks_may_be_the_list_that_make_engines_takes(file: Path) -> None:
    assert read_settings([], {}).chunks == 1 and read_settings(["--chunks", "3"], {}).chunks == 3
    assert read_settings([], {"LATENTD_CHUNKS": "1,2"}).chunks == 2
    file.write_text("chunks: [1, 4]")
    assert read_settings(["--config", str(file)], {}).chunks == 4


def test_brackets_of_an_ipv6_host_are_dropped() -> None:
    assert read_settings(["--host", "[::1]"], {}).host == "::1"


def ended(capsys: pytest.CaptureFixture[str], *argv: str, prog: str = "python -m server") -> tuple[object, str, str]:
    """Exit status, stdout and stderr of a command line that ends the program."""
    with pytest.raises(SystemExit) as stop:
        read_settings([*argv], {}, prog)
    return (stop.value.code, *capsys.readouterr())


def test_help_has_every_setting_in_one_group_with_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = ended(capsys, "--help")
    assert status == 0
    told, lines = " ".join(out.split()), out.splitlines()
    for name, f in Settings.__dataclass_fields__.items():
        assert sum(line.startswith(f"  {flag(name)} ") for line in lines) == 1
        assert f"[{f.metadata['kind'].takes}" in told, name
        assert sum(name in names for names in GROUPS.values()) == 1, f"{name} belongs into a group"
    assert "[one of auto, f16, bf16, f32; default auto]" in told
    assert "[an integer from 1 to 1000000; default 256]" in told and "[a number from 0 to 86400; default 30]" in told
    assert [line for line in lines if line.endswith(":") and not line.startswith(" ")][2:] == [f"{g}:" for g in GROUPS]
    assert "more:" not in lines and "usage: python -m server [MODEL] [--flag VALUE ..]" in lines


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(capsys, "--version") == (0, "latentd 0.1.0\n", "")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--seat", "3"], "there is no flag --seat; did you mean --seats?"),
        (["--grpcport=3", "--seats", "3"], "there is no flag --grpcport; did you mean --grpc-port?"),
        (["--SEATS", "3"], "there is no flag --SEATS; did you mean --seats?"),
        (["--xyz"], "there is no flag --xyz"),
        (["--seats"], "argument --seats: expected one argument"),
        (["a", "b"], "one model is served, and 'b' is more than that"),
        (["a", "--model", "b"], "the model is given twice, as MODEL and as --model"),
    ],
)
def test_a_bad_command_line_is_one_line(argv: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"latentd serve: {told} (see --help)\n"
    assert ended(capsys, *argv, prog="latentd serve") == (2, "", line)


def test_the_model_is_a_flag_or_stands_alone(file: Path) -> None:
    file.write_text("model: from-the-file")
    environment = {"LATENTD_CONFIG": str(file)}
    assert read_settings([], environment).model == Path("from-the-file")
    environment["LATENTD_MODEL"] = "from-the-environment"
    assert read_settings([], environment).model == Path("from-the-environment")
    for argv in (["mine", "--seats", "2"], ["--seats", "2", "mine"], ["--model", "mine", "--seats", "2"]):
        settings = read_settings(argv, environment)
        assert (settings.model, settings.seats) == (Path("mine"), 2)


def test_a_service_of_kubernetes_is_no_setting() -> None:
    """A Service named latentd-grpc puts LATENTD_GRPC_PORT=tcp://.. into every container of its namespace."""
    assert read_settings([], {"LATENTD_GRPC_PORT": "tcp://10.0.0.11:8001"}).grpc_port == 8001
    assert read_settings([], {"LATENTD_GRPC_PORT": "9001"}).grpc_port == 9001


def test_a_home_that_nobody_knows_is_told() -> None:
    with pytest.raises(SettingsError, match="^--model is '~nobody-here/m', and whose home folder that is nobody knows"):
        read_settings(["--model", "~nobody-here/m"], {})


@pytest.mark.parametrize("written", ["off", "OFF", "'off'", "false"])
def test_http_can_be_switched_off(written: str, file: Path) -> None:
    """YAML reads a bare off as False."""
    file.write_text(f"http_port: {written}")
    assert read_settings([], {"LATENTD_CONFIG": str(file)}).http_port is None
    assert read_settings(["--http-port", "0"], {"LATENTD_CONFIG": str(file)}).http_port == 0
    assert read_settings([], {"LATENTD_HTTP_PORT": "off"}).http_port is None and Settings().http_port == 8000
    assert read_settings(["--metrics-port", "off"], {}).metrics_port is None
    with pytest.raises(SettingsError, match="^--http-port is 'none'; it takes an integer from 0 to 65535, or off"):
        read_settings(["--http-port", "none"], {})


def test_hosts_are_names() -> None:
    names = read_settings(["--allow-host", "Images.Example.org, gpu-1"], {}).allow_host
    assert names == ("images.example.org", "gpu-1")
    with pytest.raises(SettingsError, match="^--allow-host is 'http://x'; it takes names"):
        read_settings(["--allow-host", "http://x"], {})


@pytest.mark.parametrize("argv", [["--insecure"], ["--insecure", "on"], ["--insecure=on"], ["mine", "--insecure"]])
def test_a_setting_that_is_on_or_off_may_stand_alone(argv: list[str]) -> None:
    assert read_settings(argv, {}).insecure is True


def test_on_and_off_as_people_write_them(file: Path) -> None:
    for written, meant in (("on", True), ("TRUE", True), ("off", False), ("no", False), ("0", False)):
        assert read_settings([], {"LATENTD_INSECURE": written}).insecure is meant
        file.write_text(f"insecure: {written}")
        assert read_settings([], {"LATENTD_CONFIG": str(file)}).insecure is meant
    assert not read_settings([], {}).insecure and not read_settings([], {"LATENTD_INSECURE": ""}).insecure
    with pytest.raises(SettingsError, match="^--insecure is 'model'; it takes on or off"):
        read_settings(["--insecure", "model"], {})
