import configparser
from pathlib import Path

from k8s.docker.build import find_local_paths, format_pip_settings, parse_pip_settings

LISTING = """\
:env:.cert='/certificates/own.pem'
download.dest='/elsewhere'
global.cert='/certificates/all.pem'
global.extra-index-url='file:///mirror/simple https://index.example.com/simple'
install.user='no'
"""


def test_settings_are_those_of_every_command_and_the_environment_goes_first() -> None:
    assert parse_pip_settings(LISTING) == {
        "cert": "/certificates/own.pem",
        "extra-index-url": "file:///mirror/simple https://index.example.com/simple",
        "user": "no",
    }
    assert parse_pip_settings("") == {}


def test_settings_are_written_as_pip_reads_them() -> None:
    parser = configparser.ConfigParser()
    parser.read_string(format_pip_settings({"find-links": "\n/one\n/two", "cert": "/c.pem"}))
    assert dict(parser["global"]) == {"find-links": "/one /two", "cert": "/c.pem"}


def test_what_lies_on_this_machine_is_found_once(tmp_path: Path) -> None:
    wheels, index = tmp_path / "wheels", tmp_path / "mirror" / "simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    certificate = wheels / "c.pem"
    certificate.touch()
    settings = {
        "cert": str(certificate),
        "find-links": f"{wheels} https://wheels.example.com",
        "extra-index-url": f"{index.as_uri()} https://index.example.com/simple",
        "constraint": str(tmp_path / "missing.txt"),
    }
    assert find_local_paths(settings) == [index.parent, wheels]


def test_an_index_at_the_root_is_not_the_whole_machine() -> None:
    assert find_local_paths({"index-url": "file:///simple", "find-links": "wheels"}) == []
