"""What sentences are put together from."""

import pytest

from esper.contracts.words import install_hint, nearest, plural, with_article


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 epochs"), (1, "1 epoch"), (2, "2 epochs"), (1797, "1,797 epochs")]
)
def test_a_noun_agrees_with_its_number(count: int, text: str) -> None:
    assert plural(count, "epoch") == text


@pytest.mark.parametrize(
    ("name", "text"), [("str", "a str"), ("int", "an int"), ("Adam", "an Adam"), ("", "a ")]
)
def test_a_name_gets_its_article(name: str, text: str) -> None:
    assert with_article(name) == text


def test_only_a_near_name_is_suggested() -> None:
    assert nearest("digit", ["text", "digits"]) == "digits"
    assert nearest("oracle", ["gap", "never"]) is None


def test_an_extra_is_installed_beside_others_and_for_all_members() -> None:
    hint = install_hint("esper-tamiyo", "mlflow")
    assert "`uv sync --inexact --all-packages --extra mlflow`" in hint
    assert "esper-tamiyo[mlflow]" in hint
