"""The bundled model, built once; and a text it has not seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from ondevice.build import build
from ondevice.quant.report import QuantReport
from ondevice.recipe import load_recipe

TEXT = """Once there was a small boat that lived by the sea. Every morning the boat said hello to
the birds, and the birds said hello to the boat. One day a big wind came. The boat was very scared.
"Do not be sad," said the oldest bird. "We will show you the way home." They flew slowly over the
water, and the boat went after them. At night they saw a light. It was the light of the old house
where the boat's friend Anna lived. Anna ran down to the water and laughed. She gave the birds some
bread. The boat was so happy that it sang a song, and all of them danced until the moon went away.

Tim had a red kite and a little brother called Sam. Sam wanted to hold the kite, but Tim said no.
Then the string broke and the kite flew up into a tall tree. Tim began to cry. Sam had an idea. He
asked the farmer for his long ladder, and the farmer came and took the kite down. "Thank you, Sam,"
said Tim. "Now you can hold it first." From that day on they always shared the red kite.
"""


@pytest.fixture(scope="session")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place, report = tmp_path_factory.mktemp("gate"), QuantReport()
    built = build(load_recipe("stories260k"), place / "stories.bundle", report=report)
    report.write(place / "report.json")
    return built


@pytest.fixture(scope="session")
def stories_report(stories: Path) -> Path:
    """What the build of `stories` reported."""
    return stories.with_name("report.json")


@pytest.fixture
def text() -> str:
    return TEXT
