"""The pages in a real browser, alone: every state, both themes, both widths, the keyboard, and nothing from outside.

That a page asks no other host, violates no policy and logs no error is looked at in every test (`watched`).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.web.makers import lease_of, record_of, service_of, spec
from tests.web.test_course import ill_record

from model_release.errors import ClusterUnavailable, MetricsUnavailable, StoreUnavailable

from .conftest import Site

CHART = ".chart canvas"


def release_of(site: Site, model: str, *, running: bool = False) -> str:
    return next(
        name
        for name, record in site.world.records.items()
        if record.model == model and (record.outcome is None) == running
    )


def fits(page: Any) -> bool:
    """Nothing is wider than the window."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_and_reads_well(site: Site, watched: Any, theme: str, width: int) -> None:
    paths = {
        "/": "Services",
        "/releases": "History",
        "/services/models/digits": "models/digits",
        f"/releases/{release_of(site, 'digits', running=True)}": "digits",
        f"/releases/{release_of(site, 'faces')}": "Versions compared",
    }
    for path, words in paths.items():
        page = watched(path, width=width, theme=theme).page
        page.get_by_role("heading", name=words).first.wait_for()
        if "services" in path:
            page.wait_for_selector(CHART)
        assert fits(page), path
        assert page.evaluate("document.documentElement.dataset.theme") == theme
        worst = page.evaluate(CONTRAST)
        assert worst["ratio"] >= 4.5, (path, worst)


# The least contrast of any text on the page, by WCAG 2's formula, over what is behind it.
CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const rgb = (colour, under) => {
    canvas.clearRect(0, 0, 1, 1);
    if (under) { canvas.fillStyle = under; canvas.fillRect(0, 0, 1, 1); }
    canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(getComputedStyle(e).backgroundColor);
    let out = "rgb(255,255,255)";
    for (const layer of layers) { const [r, g, b] = rgb(layer, out); out = `rgb(${r},${g},${b})`; }
    return out;
  };
  let worst = {ratio: 99};
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest(".unseen, .skip, script")) continue;
    const under = behind(element), over = rgb(getComputedStyle(element).color, under);
    const [a, b] = [light(over), light(rgb(under))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst.ratio) worst = {ratio, text: walker.currentNode.data.trim().slice(0, 40)};
  }
  return worst;
}"""


def test_a_canary_is_followed_to_its_promotion_without_a_reload(site: Site, watched: Any) -> None:
    name = release_of(site, "digits", running=True)
    page = watched(f"/releases/{name}").page
    page.get_by_text("Watching").first.wait_for()
    page.wait_for_selector(CHART)
    page.evaluate("window.kept = true")
    page.get_by_text("Queries").click()
    promoted = record_of(site.world.specs["digits"], started=datetime.now(UTC) - timedelta(minutes=5))
    promoted.release = name
    site.world.records[name] = promoted
    page.get_by_text("Promoted", exact=True).first.wait_for()
    assert page.evaluate("window.kept"), "the page was not loaded again"
    assert page.locator("details.queries").get_attribute("open") is not None, "what was opened stays open"
    assert page.locator("#announce").inner_text().startswith("Promoted:"), "and it is told to who listens"
    assert page.locator(".track .done").count() == 4


def test_the_fleet_moves_the_split_in_place_and_keeps_the_focus(site: Site, watched: Any) -> None:
    page = watched("/").page
    link = page.get_by_role("link", name="models/plants")
    link.focus()
    site.world.live["digits"] = service_of("digits", {1: 70, 2: 30})
    page.get_by_text("30 %").wait_for()
    assert page.evaluate("document.activeElement.textContent") == "models/plants"
    bar = page.get_by_role("img", name="stable 70 %, canary 30 %")
    assert bar.locator("rect.canary").get_attribute("width") == "30"


def test_charts_show_the_range_that_the_page_says_when_a_canary_begins(site: Site, watched: Any) -> None:
    """At rest a service is shown for an hour, beside a canary for a quarter of one."""
    world = site.world
    canary, world.live["digits"] = world.live["digits"], service_of("digits", {1: 100})
    held = world.held.pop("digits")
    page = watched("/services/models/digits").page
    page.wait_for_selector(CHART)
    assert page.locator(".ranges [aria-current]").inner_text() == "1h"
    world.live["digits"], world.held["digits"] = canary, held
    page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")  # it looks at once
    page.locator(".ranges [aria-current]", has_text="15m").wait_for()
    assert page.locator("#traffic").get_attribute("data-url").endswith("range=15m")


def test_a_failed_connection_is_told_and_recovers(site: Site, watched: Any) -> None:
    one = watched("/")
    one.page.get_by_text("Live").first.wait_for()
    one.page.context.set_offline(True)
    one.page.get_by_text("No answer; what is shown may be old").wait_for()
    one.page.context.set_offline(False)
    one.page.locator('#pulse[data-state="live"]').wait_for()
    assert one.complaints, "the browser tells of the failed request"
    assert all("ERR_INTERNET_DISCONNECTED" in line for line in one.complaints)
    one.complaints.clear()


def test_charts_that_cannot_be_drawn_say_so_and_are_drawn_later(site: Site, watched: Any) -> None:
    one = watched("/services/models/digits")
    one.page.wait_for_selector(CHART)
    one.page.route("**/vendor/*.js", lambda route: route.abort())
    one.page.reload()
    one.page.get_by_text("This cannot be drawn: the chart library cannot be loaded").wait_for()
    one.page.unroute("**/vendor/*.js")
    one.page.wait_for_selector(CHART)
    assert one.page.get_by_text("This cannot be drawn").count() == 0
    assert all("ERR_FAILED" in line for line in one.complaints)
    one.complaints.clear()


def test_charts_show_steps_and_values_and_obey_the_arrow_keys(site: Site, watched: Any) -> None:
    page = watched("/services/models/digits").page
    page.wait_for_selector(CHART)
    charts = page.locator(".chart")
    assert [charts.nth(i).locator("figcaption").inner_text() for i in range(3)] == [
        "Requests a second",
        "Errors (5xx), share of requests",
        "Latency: from the median to the 95th percentile, and the 99th",
    ]
    stage = charts.first.locator(".stage")
    assert "stable" in (stage.get_attribute("aria-label") or "")
    stage.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("document.querySelector('.chart figcaption').textContent.includes(':')")
    values = charts.first.locator(".values td").all_inner_texts()
    assert len(values) == 2
    assert all(float(value) > 0 for value in values)


def test_a_release_draws_each_metric_its_interval_the_share_and_what_was_set_aside(site: Site, watched: Any) -> None:
    record = ill_record()
    site.world.add(record)
    page = watched(f"/releases/{record.release}").page
    page.wait_for_selector("#course .chart canvas")
    charts = page.locator("#course .chart")
    assert charts.locator("figcaption").all_inner_texts() == [
        "Way to the threshold (100 % decides)",
        "Share of the traffic",
        "errors: the canary's share, with its interval",
        "errors: way to the threshold",
        "slow: the canary's share, with its interval",
        "slow: way to the threshold",
    ]
    rows = dict(row.split("\t") for row in charts.nth(2).locator("tr").all_inner_texts())
    assert {"at most", "at least", "canary so far", "in this window", "stable so far", "limit"} < rows.keys()
    assert int(rows["windows with stable failing"]) > 0
    assert page.locator("#m-errors").get_by_text("Stable was failing too").is_visible()
    painted = "(canvas) => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some((v) => v)"
    for i in range(charts.count()):
        assert charts.nth(i).locator("canvas").evaluate(painted)


def test_latency_has_both_revisions_from_the_median_to_the_99th(site: Site, watched: Any) -> None:
    page = watched("/services/models/digits").page
    page.wait_for_selector(CHART)
    rows = page.locator("#traffic .chart").nth(2).locator("tr th").all_inner_texts()
    assert [row.strip() for row in rows] == [
        f"{role} {quantile}" for role in ("stable", "canary") for quantile in ("p50", "p95", "p99")
    ]


def test_the_whole_page_by_keyboard(site: Site, watched: Any) -> None:
    page = watched("/").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "models/digits"
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid", "focus is visible"
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="models/digits").wait_for()


def test_a_long_fleet_is_filtered_while_typing(site: Site, watched: Any) -> None:
    for i in range(30):
        site.world.specs[f"model-{i:02d}"] = spec(f"model-{i:02d}")
    page = watched("/").page
    page.get_by_label("Find").fill("model-1")
    assert page.locator("#fleet tbody tr:visible").count() == 10
    page.get_by_label("Find").fill("nobody")
    page.get_by_text("No service fits.").wait_for()


def test_history_is_filtered_by_its_form(site: Site, watched: Any) -> None:
    page = watched("/releases").page
    page.get_by_label("Outcome").select_option("rolled_back")
    page.wait_for_url("**outcome=rolled_back**")
    assert page.locator(".releases tbody tr").count() == 1
    page.get_by_label("Outcome").select_option("published")
    page.get_by_text("No release fits").wait_for()


STATES = {
    "store": (StoreUnavailable("s3://models/digits/: S3 does not answer"), "S3 does not answer"),
    "cluster": (ClusterUnavailable("list inferenceservices models/: the Kubernetes API does not answer"), "Unknown"),
}


@pytest.mark.parametrize("what", STATES)
def test_what_is_down_is_told_beside_what_is_not(site: Site, watched: Any, what: str) -> None:
    error, words = STATES[what]
    setattr(site.world.fault, what, error)
    page = watched("/").page
    page.get_by_role("alert").get_by_text("Not everything can be shown").wait_for()
    page.get_by_text(words).first.wait_for()
    assert page.locator("#fleet tbody tr").count() == 6
    setattr(site.world.fault, what, None)
    page.get_by_role("alert").wait_for(state="detached")


def test_charts_without_prometheus_or_without_requests_say_so(site: Site, watched: Any) -> None:
    query = "sum(rate(istio_requests_total{" + 'destination_workload="digits",' * 9 + "}[15s]))"
    why = f"Prometheus at http://p:9090 does not answer within 10 s; query: {query}"
    site.world.fault.prometheus = MetricsUnavailable(why)
    for width in (1280, 390):
        page = watched("/services/models/digits", width=width).page
        page.get_by_text("does not answer within 10 s").wait_for()
        assert page.get_by_text(query).is_visible()
        assert page.evaluate("[...document.querySelectorAll('.card')].every((it) => it.scrollWidth <= it.clientWidth)")
    site.world.fault.prometheus, site.world.lines = None, None
    page = watched("/services/models/faces").page
    page.get_by_text("That is no sign of health").wait_for()


def test_an_empty_house_says_how_to_begin(site: Site, watched: Any) -> None:
    site.world.specs.clear()
    page = watched("/").page
    page.get_by_text("No service yet").wait_for()


def test_hostile_text_does_nothing(site: Site, watched: Any) -> None:
    bad = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    record = record_of(site.world.specs["plants"], outcome="rolled_back", reason=bad, rate=0.06, number=4)
    record.run["note"] = bad
    site.world.add(record)
    site.world.held["plants"] = lease_of("plants", frozen=bad)
    for path in ("/", "/releases", "/services/models/plants", f"/releases/{record.release}"):
        page = watched(path).page
        page.get_by_text("<img src=x").first.wait_for()
        assert "owned" not in page.title()


def test_within_airflow_it_has_airflows_theme_and_follows_it(site: Site, watched: Any) -> None:
    page = watched("/airflow?theme=dark", whole=True).page
    frame = page.frame_locator("#frame")
    frame.get_by_role("heading", name="Services").wait_for()
    assert frame.locator("html").get_attribute("data-theme") == "dark"
    page.evaluate("document.documentElement.className = 'light'")
    frame.locator('html[data-theme="light"]').wait_for()


def test_links_that_leave_the_frame_open_outside_of_it(site: Site, watched: Any) -> None:
    site.world.known["grafana"] = f"{site.url}/airflow"
    page = watched("/airflow", whole=True).page
    frame = page.frame_locator("#frame")
    frame.get_by_role("link", name="models/digits").click()
    with page.context.expect_page() as opened:
        frame.get_by_role("link", name="Grafana").click()
    assert "/d/model-release-service-istio" in opened.value.url
    assert frame.get_by_role("heading", name="models/digits").is_visible()
