"""The page in a real browser: it shows the stack, fits every width, and breaks no rule of its own CSP."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest

_where = Path(__file__).parents[1] / "browser.py"
_spec = importlib.util.spec_from_file_location("studio_browser", _where)
assert _spec
assert _spec.loader
browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not browser.CHROMIUM.exists(), reason=f"needs a browser: no {browser.CHROMIUM} here"),
]

READY = "document.querySelector('#live')?.dataset.state === 'live'"


async def test_the_page_shows_the_running_stack(studio: Any, admin: Any) -> None:
    async with browser.chromium() as page:
        await page.call("Page.navigate", url=studio.url)
        await page.until(READY)
        text = await page.evaluate("document.body.innerText")
        for expected in (
            "llm-0",
            "embed-0",
            "RANDOM-WEIGHTS",
            "least_load",
            "queue of chat is full",
            "12 + 48",
        ):
            assert expected in text
        assert await page.evaluate("document.cookie") == ""
        assert await page.evaluate("location.search") == ""

        admin.engines.pop()
        await page.until("document.querySelectorAll('.card').length === 1")

        shots = os.environ.get("STUDIO_SCREENSHOTS")
        for dark in (False, True):
            for width in (1280, 390):
                await page.view(width, dark=dark)
                await page.until(
                    f"document.documentElement.dataset.theme === '{'dark' if dark else 'light'}'"
                )
                assert await page.evaluate("document.documentElement.scrollWidth") <= width
                if shots:
                    await page.screenshot(Path(shots) / f"studio-{width}-{'dark' if dark else 'light'}.png")
        assert page.console == []


async def test_names_from_the_stack_stay_text(studio: Any, admin: Any) -> None:
    admin.decisions[0] = admin.decisions[0].model_copy(update={"reason": "<img src=x onerror=alert(1)>"})
    async with browser.chromium() as page:
        await page.call("Page.navigate", url=studio.url)
        await page.until(READY)
        assert "<img src=x" in await page.evaluate("document.querySelector('#decisions').innerText")
        assert await page.evaluate("document.querySelectorAll('#decisions img').length") == 0


async def test_a_stack_that_stops_is_said_and_the_last_numbers_stay(studio: Any, paths: Any) -> None:
    async with browser.chromium() as page:
        await page.call("Page.navigate", url=studio.url)
        await page.until(READY)
        paths.run_file.unlink()
        await page.until("!document.querySelector('#problem').hidden")
        assert "sage up" in await page.evaluate("document.querySelector('#problem').innerText")
        assert await page.evaluate("document.querySelectorAll('.card').length") == 2


async def test_the_theme_can_be_chosen_and_is_kept(studio: Any) -> None:
    async with browser.chromium() as page:
        await page.view(1280, dark=False)
        await page.call("Page.navigate", url=studio.url)
        await page.until(READY)
        await page.evaluate("document.querySelector('#theme').click()")
        assert await page.evaluate("document.documentElement.dataset.theme") == "dark"
        await page.call("Page.reload")
        await page.until(READY)
        assert await page.evaluate("document.documentElement.dataset.theme") == "dark"
