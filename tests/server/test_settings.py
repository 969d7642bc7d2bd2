from __future__ import annotations

from pathlib import Path

import pytest

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
    with pytest.raises(SettingsError, match=r"has unknown keys: (bogus, )?seat; there are: .*seats, sizes"):
        read_settings(["--config", str(file)], {})


@pytest.mark.parametrize(
    "written", [b"- 1\n- 2", b"just text", b"a: [", b"\xff\xfe\xff", b"{seats: 1, seats", b"? [a]"]
)
def test_a_file_that_is_none_is_one_sentence(written: bytes, file: Path) -> None:
    file.write_bytes(written)
    with pytest.raises(SettingsError, match=str(file)):
        read_settings(["--config", str(file)], {})


def test_a_file_that_is_missing_is_named(file: Path) -> None:
    with pytest.raises(SettingsError, match=f"{file} cannot be read"):
        read_settings(["--config", str(file)], {})


def test_sizes_are_kept_in_order_and_once() -> None:
    assert read_settings(["--sizes", "64x32, 32x64,64x32"], {}).sizes == ((64, 32), (32, 64))


def test_chunks_may_be_the_list_that_make_engines_takes(file: Path) -> None:
    assert read_settings([], {}).chunks == 1 and read_settings(["--chunks", "3"], {}).chunks == 3
    assert read_settings([], {"LATENTD_CHUNKS": "1,2"}).chunks == 2
    file.write_text("chunks: [1, 4]")
    assert read_settings(["--config", str(file)], {}).chunks == 4


def test_brackets_of_an_ipv6_host_are_dropped() -> None:
    assert read_settings(["--host", "[::1]"], {}).host == "::1"


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        read_settings(["--help"], {})
    told = capsys.readouterr().out
    assert ended.value.code == 0
    for name in Settings.__dataclass_fields__:
        assert "--" + name.replace("_", "-") in told
