"""The page in a real browser: every view, what it shows, and what it shows to whom."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, expect

from acclimate.monitoring import RequestRecord, Store
from tests.ui.conftest import DESKTOP, PHONE, Site, Visitor

PATHS = ("/", "/images", "/files", "/watch", "/operate")
PROMPT = "stone -> <q>stone</q>\nlamp -> <q>lamp</q>\nriver -> <q>river</q>\ncabin -> <q>cabin</q>\ntiger ->"


@pytest.fixture
def visit(browser: Browser, site: Site) -> Iterator[Visitor]:
    """An administrator who has signed in, at a desk."""
    with browser.new_context(viewport={"width": DESKTOP[0], "height": DESKTOP[1]}, bypass_csp=False) as context:
        visitor = Visitor(context, site.server.url)
        visitor.sign_in(site.admin)
        yield visitor
        assert visitor.problems == []


def another(browser: Browser, site: Site, key: str, *, size: tuple[int, int] = DESKTOP, dark: bool = False) -> Visitor:
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
    )
    visitor = Visitor(context, site.server.url)
    visitor.sign_in(key)
    return visitor


def add_requests(site: Site, *, days: int, count: int = 1) -> None:
    """Write requests that are as old as this into the server's store."""
    then = datetime.now(UTC) - timedelta(days=days)
    with Store(str(site.keys_file.parent / "metrics.db")) as store:
        for number in range(count):
            at = then - timedelta(seconds=number)
            store.put(RequestRecord(pipeline="language", status="plain", session_id="old", timestamp=at))
        store.flush()


@pytest.mark.parametrize("path", PATHS)
def test_every_view_loads_alone_fits_and_is_accessible(browser: Browser, site: Site, path: str) -> None:
    visitor = another(browser, site, site.admin, size=PHONE, dark=True)
    visitor.open(path)
    assert visitor.problems == []
    # axe is put into the page by the test, which the page's own policy would refuse.
    with browser.new_context(bypass_csp=True, storage_state=visitor.page.context.storage_state()) as context:
        tested = Visitor(context, site.server.url)
        for (width, height), dark in ((DESKTOP, False), (PHONE, True)):
            tested.page.set_viewport_size({"width": width, "height": height})
            tested.page.emulate_media(color_scheme="dark" if dark else "light")
            page = tested.open(path)
            page.wait_for_timeout(500)
            assert tested.overflow_px == 0
            assert page.evaluate("document.body.classList.contains('body--dark')") is dark
            found = Axe().run(page).response["violations"]
            assert [(v["id"], v["impact"]) for v in found if v["impact"] in ("serious", "critical")] == []
        assert tested.problems == []
    visitor.page.context.close()


def test_a_prompt_is_read_run_explained_and_saved(visit: Visitor) -> None:
    page = visit.open("/?example=quotes")
    assert page.locator("mark.input").count() == 4
    assert page.locator("mark.output").count() == 4
    expect(page.locator("mark.query")).to_have_text("melon")
    page.get_by_label("Prompt with worked examples").fill(PROMPT)
    expect(page.locator("mark.query")).to_have_text("tiger")
    visit.run()
    expect(page.get_by_role("group", name="Answer: With adapting")).to_have_text("<q>tiger</q>")
    expect(page.get_by_text("It is right with an estimated probability of")).to_be_visible()
    expect(page.get_by_text("adapted to the other examples")).to_be_visible()
    expect(page.get_by_text("Training on all examples")).to_be_visible()
    assert page.locator(".chart svg path").count() > 4
    page.get_by_label("Name of the adapter").fill("quotes-of-the-test")
    page.get_by_role("button", name="Save the adapter").click()
    expect(page.get_by_text("spark:quotes-of-the-test")).to_be_visible()
    operate = visit.open("/operate")
    expect(operate.get_by_text("spark:quotes-of-the-test: 4 examples")).to_be_visible()


def test_rows_of_examples_can_be_given_and_too_little_is_refused(visit: Visitor) -> None:
    page = visit.open("/")
    page.get_by_role("tab", name="Rows of examples").click()
    page.get_by_label("Question").fill("")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_role("alert").filter(has_text="There is nothing to answer")).to_be_visible()
    page.get_by_label("Question").fill("tiger")
    page.get_by_role("button", name="Remove row 4").click()
    expect(page.get_by_label("Input 4")).to_have_count(0)
    page.get_by_role("button", name="Add a row").click()
    page.get_by_label("Input 4").fill("garden")
    page.get_by_label("Output 4").fill("<q>garden</q>")
    visit.run()
    expect(page.get_by_role("group", name="Answer: With adapting")).to_have_text("<q>tiger</q>")
    expect(page.get_by_text("fine-tuned on your 4 examples")).to_be_visible()


def test_answers_appear_piece_by_piece(visit: Visitor) -> None:
    page = visit.open("/?example=capitals")
    page.evaluate(
        """() => { window.seen = [];
        const box = document.querySelector('[aria-label="Answer: Base model"]');
        new MutationObserver(() => window.seen.push(box.textContent))
          .observe(box, {childList: true, characterData: true, subtree: true}); }"""
    )
    visit.run()
    seen = [text for text in page.evaluate("window.seen") if text not in ("", "...")]
    assert seen[-1] == "MELON!"
    # Several tokens may arrive in one message, but not all of them.
    assert len(set(seen)) > 1
    assert all("MELON!".startswith(text) for text in seen)


def test_the_same_request_can_be_copied_and_the_settings_shared(visit: Visitor) -> None:
    page = visit.open("/?mode=force&steps=3&example=dates")
    page.get_by_text("All settings, with their defaults").click()
    expect(page.get_by_label("Most training steps")).to_have_value("3")
    page.get_by_role("button", name="Copy as ...").click()
    expect(page.get_by_text("/v1/chat/completions")).to_be_visible()
    page.get_by_role("tab", name="command line").click()
    expect(page.get_by_text("acclimate ask --model spark --policy always --steps 3")).to_be_visible()
    page.get_by_role("button", name="Close").click()
    page.get_by_label("Prompt with worked examples").fill("a secret -> b\nanother -> c\nlast ->")
    page.get_by_role("button", name="Share").click()
    page.wait_for_url(lambda url: "example" not in url)
    assert "steps=3" in page.url
    assert "secret" not in page.url
    assert "example" not in page.url


def test_images_are_shown_before_and_after(visit: Visitor) -> None:
    page = visit.open("/images?damage=contrast&severity=4&method=blend")
    page.get_by_label("Images, at most").fill("48")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_text("95 % interval")).to_be_visible()
    without, adapted = (
        float(page.locator("td.number").nth(position).inner_text().removesuffix(" %")) for position in (0, 1)
    )
    assert adapted > without + 50
    assert page.locator(".pictures figure").count() >= 12
    assert page.locator("img[alt='as the filter handed it on']").count() >= 12
    over = page.locator(".before-after .over")
    before = over.evaluate("box => box.style.clipPath")
    page.get_by_label("How much is shown without adapting").press("ArrowRight")
    assert over.evaluate("box => box.style.clipPath") != before


def test_what_controls_would_not_send_does_nothing_or_is_refused(visit: Visitor) -> None:
    page = visit.open("/images?method=blend")
    for _ in range(12):
        visit.send("Run", "click")
    expect(page.get_by_text("96 images predicted.")).to_be_visible()
    # One run was started: further ones would wait, and too many of them would be refused.
    assert page.get_by_text("too many visitors").count() == 0
    expect(page.get_by_role("button", name="Run", exact=True)).to_be_enabled()
    for label, value, told in (
        ("Severity, 1 to 5", 99, "99 is no whole number from 1 to 5"),
        ("Images in a batch", -2, "-2 is no whole number from 1 to 200"),
        ("Model", None, "There is no such model"),
    ):
        # One of the clicks above may have come after the run and begun another, during which Run does nothing.
        for _ in range(20):
            visit.send(label, "update:modelValue", value)
            visit.send("Run", "click")
            with contextlib.suppress(AssertionError):
                expect(page.get_by_text(told)).to_be_visible(timeout=10_000)
                break
        expect(page.get_by_text(told)).to_be_visible()
        visit.send("Severity, 1 to 5", "update:modelValue", 4)
        visit.send("Images in a batch", "update:modelValue", 16)


def test_uploads_are_decoded_and_others_refused(visit: Visitor) -> None:
    from PIL import Image

    from tests.ui.test_image_sets import encoded

    page = visit.open("/images?images=uploads")
    chooser = page.locator("input[type=file]")
    chooser.set_input_files(
        [
            {"name": "one.png", "mimeType": "image/png", "buffer": encoded(Image.new("RGB", (40, 30), "red"))},
            {"name": "two.png", "mimeType": "image/png", "buffer": b"this is no image"},
        ]
    )
    expect(page.get_by_text("1 images are here.")).to_be_visible()
    expect(page.get_by_text("This is no image in one of the formats")).to_be_visible()


def test_files_are_named_and_an_open_one_is_answered(visit: Visitor) -> None:
    from tests.ui.test_files import sound_file

    page = visit.open("/files")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_text("There is no open file yet")).to_be_visible()
    page.get_by_role("button", name="Take some digits").click()
    expect(page.get_by_text("21 examples: 7 of 0, 7 of 1, 7 of 7.")).to_be_visible()
    visit.run()
    expect(page.get_by_role("group", name="Answer").locator(".answer")).to_have_text("7")
    expect(page.get_by_text("each held out in turn")).to_be_visible()
    expect(page.get_by_text("similarity").first).to_be_visible()
    page = visit.open("/files")
    chooser = page.locator("input[type=file]")
    page.get_by_label("Label of the files").fill("low")
    with page.expect_file_chooser() as chosen:
        page.get_by_role("button", name="Choose examples with this label").click()
    chosen.value.set_files([{"name": "low.wav", "mimeType": "audio/wav", "buffer": sound_file(200)}])
    expect(page.get_by_text("1 examples: 1 of low.")).to_be_visible()
    chooser.first.set_input_files([{"name": "wrong.wav", "mimeType": "audio/wav", "buffer": b"no sound"}])
    expect(page.get_by_text("is neither an image nor a sound")).to_be_visible()
    assert page.locator("audio").count() == 1


def test_two_browsers_do_not_see_each_other(browser: Browser, site: Site) -> None:
    one, other = (another(browser, site, key) for key in (site.admin, site.train))
    for visitor, word in ((one, "alder"), (other, "birch")):
        page = visitor.open("/")
        page.get_by_label("Prompt with worked examples").fill(PROMPT.replace("tiger", word))
        page.get_by_role("button", name="Run", exact=True).click()
    for visitor, word, never in ((one, "alder", "birch"), (other, "birch", "alder")):
        expect(visitor.page.get_by_role("group", name="Answer: With adapting")).to_have_text(f"<q>{word}</q>")
        assert never not in visitor.page.content()
    # The administrator's requests are not those of another key.
    rows = other.open("/watch").locator("a[href^='/watch/requests/']")
    expect(rows.first).to_be_visible()
    mine = {rows.nth(number).get_attribute("href") for number in range(rows.count())}
    all_rows = one.open("/watch").locator("a[href^='/watch/requests/']")
    expect(all_rows.first).to_be_visible()
    theirs = {all_rows.nth(number).get_attribute("href") for number in range(all_rows.count())} - mine
    assert mine
    assert theirs
    page = other.open(sorted(str(path) for path in theirs)[0])
    expect(page.get_by_text("There is no such request, or it is not yours.")).to_be_visible()
    for visitor in (one, other):
        assert visitor.problems == []
        visitor.page.context.close()


def test_who_may_not_adapt_gets_the_base_model_and_nothing_to_operate(browser: Browser, site: Site) -> None:
    visitor = another(browser, site, site.infer)
    page = visitor.open("/?example=quotes")
    visitor.run()
    expect(page.get_by_text("This API key may not adapt")).to_be_visible()
    expect(page.get_by_role("group", name="Answer: With adapting")).to_have_text("Switched off.")
    page = visitor.open("/images")
    page.get_by_role("button", name="Run", exact=True).click()
    expect(page.get_by_text("This API key lacks the scope train.")).to_be_visible()
    page = visitor.open("/operate")
    expect(page.get_by_text("needs a key with the scope admin")).to_be_visible()
    assert page.get_by_text("API keys").count() <= 1
    assert page.get_by_role("button", name="Create").count() == 0
    page.context.close()


def test_a_request_has_a_page_that_explains_it(visit: Visitor) -> None:
    page = visit.open("/?example=coins")
    visit.run()
    expect(page.get_by_text("did no better than the base model").first).to_be_visible()
    page = visit.open("/watch")
    page.locator("a[href^='/watch/requests/']").first.click()
    page.wait_for_selector(".page h1")
    expect(page.get_by_text("did no better than the base model")).to_be_visible()
    expect(page.get_by_text("language adaptation")).to_be_visible()


def test_going_back_shows_the_requests_before(site: Site, visit: Visitor) -> None:
    add_requests(site, days=3, count=30)
    page = visit.open("/watch?hours=168")
    newest = page.locator("table.plain a").first.inner_text()
    page.get_by_role("button", name="Older").click()
    expect(page.locator("table.plain a").first).not_to_have_text(newest)
    page.go_back()
    expect(page.locator("table.plain a").first).to_have_text(newest)


def test_charts_can_be_downloaded_as_csv(visit: Visitor) -> None:
    page = visit.open("/watch?hours=24")
    with page.expect_download() as started:
        page.get_by_role("button", name="Requests as CSV").click()
    lines = started.value.path().read_text().splitlines()
    assert lines[0] == "time,adapted,declined,fallback,plain"
    assert len(lines) >= 1


def test_keys_are_created_and_revoked_and_a_revoked_session_ends(browser: Browser, site: Site, visit: Visitor) -> None:
    page = visit.open("/operate")
    keys = page.get_by_role("region", name="API keys")
    keys.get_by_label("Name").fill("made in the test")
    keys.get_by_role("button", name="Create").click()
    secret = keys.locator(".prompt-text").inner_text().strip()
    guest = Visitor(browser.new_context(), site.server.url)
    guest.sign_in_by_typing(secret)
    guest.page.wait_for_function("window.did_handshake")
    keys.locator(".row.spread", has_text="made in the test").get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="Yes").click()
    expect(keys.locator(".row.spread", has_text="made in the test")).to_contain_text("revoked")
    guest.page.get_by_role("button", name="Run", exact=True).click()
    expect(guest.page.get_by_text("Your session has ended; sign in again.")).to_be_visible()
    guest.page.goto(f"{site.server.url}/")
    expect(guest.page.get_by_label("API key")).to_be_visible()
    guest.page.context.close()


def test_experiments_are_created_assigned_and_stopped(site: Site, visit: Visitor) -> None:
    page = visit.open("/operate")
    box = page.get_by_role("region", name="Experiments")
    box.get_by_label("Name").fill("from-the-page")
    box.get_by_role("button", name="Create").click()
    box.get_by_role("button", name="Assign requests").click()
    expect(box.get_by_text("requests are assigned to it", exact=False).first).to_be_visible()
    expect(box.get_by_role("button", name="Assign requests")).to_have_count(0)
    answer = httpx.post(
        f"{site.server.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {site.train}"},
        json={"model": "spark", "messages": [{"role": "user", "content": PROMPT}]},
        timeout=120,
    )
    assert answer.json()["ttt"]["experiment"] == "from-the-page"
    box.get_by_role("button", name="Stop").click()
    page.get_by_role("button", name="Yes").click()
    expect(box.get_by_text("stopped")).to_be_visible()


def test_old_rows_are_counted_before_they_are_deleted_and_health_is_told(site: Site, visit: Visitor) -> None:
    page = visit.open("/operate")
    delete = page.get_by_role("region", name="Old rows").get_by_role("button", name="Delete")
    expect(delete).to_be_disabled()
    page.get_by_role("button", name="Count").click()
    expect(page.get_by_text("Nothing is older than 30 days.")).to_be_visible()
    expect(delete).to_be_disabled()
    add_requests(site, days=50)
    page.get_by_label("Keep days").fill("40")
    page.get_by_role("button", name="Count").click()
    expect(delete).to_be_enabled()
    # Other rows than those that were counted cannot be deleted.
    page.get_by_label("Keep days").fill("20")
    expect(delete).to_be_disabled()
    page.get_by_role("button", name="Count").click()
    expect(delete).to_be_enabled()
    delete.click()
    page.get_by_text("Delete what is older than 20 days, for good?").wait_for()
    page.get_by_role("button", name="Yes").click()
    expect(page.get_by_role("columnheader", name="deleted", exact=True)).to_be_visible()
    page.get_by_role("button", name="Check").click()
    expect(page.get_by_text("ttt_activation_rate").first).to_be_visible()


def test_the_theme_stays(visit: Visitor) -> None:
    page = visit.open("/")
    page.get_by_role("button", name="Light or dark").click()
    assert page.evaluate("document.body.classList.contains('body--dark')")
    page = visit.open("/watch")
    page.wait_for_function("document.body.classList.contains('body--dark')")


def test_everything_can_be_reached_by_the_keyboard(visit: Visitor) -> None:
    page = visit.open("/?example=quotes")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    names = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        names.add(
            page.evaluate("(document.activeElement.ariaLabel || document.activeElement.textContent || '').trim()")
        )
    assert {"Language", "Images", "Watch", "Operate", "Light or dark"} <= names
    assert any("Run" in name for name in names)
