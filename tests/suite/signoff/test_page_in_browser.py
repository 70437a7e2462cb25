"""The sign-off page in a real browser, from a file, at the widths of a desk and a phone, in light and dark.

A probe at the end of the page opens everything that can be opened, measures, and sends JSON to the document around
it, which the browser prints. The page is in a frame because a browser's window is never as narrow as a phone.
Needs a Chromium: ``apt-get install chromium``, or CHROMIUM=/path/to/it.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.made import failed, record
from tests.support.signed import EVERY, NORM, TARGET, made, path, whole
from validators.records.evidence import ErrorByDepth, Evaluation, WalkEvidence
from validators.records.record import Check, Record, Status
from validators.signoff import html as signoff_html
from validators.signoff.decision import under_policy

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
LIMIT_S = 120
PROBE = """
<script>
(function () {
  var seen = { width: innerWidth, errors: window.problems || [] };
  seen.closed = document.documentElement.scrollWidth;
  var h1 = document.querySelector("h1").getBoundingClientRect();
  seen.decision = [h1.top, h1.bottom];
  document.querySelectorAll("details").forEach(function (d) { d.open = true; });
  seen.opened = document.documentElement.scrollWidth;
  seen.wide = [];
  document.querySelectorAll("main *").forEach(function (e) {
    if (e.closest(".scroll, pre, svg, .unseen")) return;
    if (e.getBoundingClientRect().right > innerWidth + 1) seen.wide.push(e.outerHTML.slice(0, 120));
  });
  function channels(text) { return text.match(/[\\d.]+/g).map(Number); }
  function light(c) {
    var f = c.slice(0, 3).map(function (v) {
      v /= 255;
      return v <= 0.03928 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4);
    });
    return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2];
  }
  function behind(e) {
    for (; e; e = e.parentElement) {
      var c = channels(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255];
  }
  seen.faint = [];
  document.querySelectorAll("body *").forEach(function (e) {
    if (e.closest("svg, script, .unseen, .skip")) return;
    var own = Array.prototype.some.call(e.childNodes, function (n) { return n.nodeType === 3 && n.data.trim(); });
    if (!own) return;
    var a = light(channels(getComputedStyle(e).color)), b = light(behind(e));
    var ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) seen.faint.push([ratio.toFixed(2), e.outerHTML.slice(0, 100)]);
  });
  seen.keyboard = Array.prototype.every.call(document.querySelectorAll("summary, button, [tabindex]"), function (e) {
    e.focus(); return document.activeElement === e;
  });
  seen.resources = performance.getEntriesByType("resource").length;
  seen.page = channels(getComputedStyle(document.body).backgroundColor).slice(0, 3);
  seen.pictures = document.querySelectorAll("svg").length;
  parent.postMessage(JSON.stringify(seen), "*");
})();
</script>
"""
FRAME = """<!doctype html><meta name="color-scheme" content="light dark"><body style="margin:0">
<iframe src="{page}" style="border:0;width:{width}px;height:{height}px"></iframe>
<pre id="probe"></pre>
<script>onmessage = function (e) {{ document.getElementById("probe").textContent = e.data; }};</script>"""
WATCH = "<script>window.problems = []; onerror = function (m) { window.problems.push(String(m)); };</script>"


def _browser() -> str:
    found = os.environ.get("CHROMIUM") or next((p for name in NAMES if (p := shutil.which(name))), None)
    if not found:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH, and CHROMIUM is not set")
    return found


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page that shows everything: every stage, long names, failing elements, what is untested."""
    pytest.importorskip("jinja2", reason="the page needs jinja2, which is optional")
    medians = ErrorByDepth((0, 1, 2, 3), fused=(0.01, 0.02, 0.03, 0.05), unfused=(0.01, 0.02, 0.02, 0.04))
    said = "after layer 3 " + "the error is 1.2 " * 9
    parity = Evaluation(margin=1.5, difference=-0.004, interval=(-0.011, 0.003))
    records: list[Record] = [
        *(r for r in path() if r.lane not in ("trace", "goldens")),
        failed(kernel="demo/norm", lane="random", case="add_rmsnorm_quant-" + "m512-n5120-" * 6 + "bf16-e4m3fn-x-s3"),
        record(
            kernel="demo/norm",
            op=NORM,
            lane="layers",
            case="layers-glm-tiny-trajectory",
            walk=WalkEvidence("glm-tiny", depth=medians),
            checks=(Check("fused against unfused", True, said, "statistical"),),
        ),
        whole("parity", case="parity-tiny-glm-n1319-margin1.5-s0", evaluation=parity),
        made("ptpc_gemm", "ptpc_gemm-x", "special", Status.ERROR, reasons=("RuntimeError: " + "x" * 300,)),
    ]
    text = signoff_html.page(under_policy(records, EVERY, [TARGET]))
    assert "NOT SIGNED" in text
    file = tmp_path_factory.mktemp("page") / "signoff.html"
    file.write_text(text.replace("</head>", WATCH + "</head>", 1).replace("</body>", PROBE + "</body>", 1))
    return file


def look(page: Path, profile: Path, width: int, height: int, *, dark: bool) -> dict[str, Any]:
    """What the probe saw in a window of that size."""
    around = profile / "around.html"
    around.write_text(FRAME.format(page=page.as_uri(), width=width, height=height))
    command = [
        _browser(),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--hide-scrollbars",
        f"--user-data-dir={profile / 'user'}",
        "--window-size=1400,1000",
        "--virtual-time-budget=5000",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}",
        "--dump-dom",
        around.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    found = re.search(r'<pre id="probe">(.+?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the browser printed no probe: {done.stderr[-800:]}"
    seen: dict[str, Any] = json.loads(html.unescape(found[1]))
    return seen


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize(("width", "height"), [(390, 844), (1280, 900)], ids=["phone", "desk"])
def test_the_page_fits_reads_and_obeys_the_keyboard(
    page: Path, tmp_path: Path, width: int, height: int, dark: bool
) -> None:
    seen = look(page, tmp_path, width, height, dark=dark)
    assert seen["errors"] == []
    assert seen["width"] == width
    assert seen["closed"] <= width, "it scrolls sideways"
    assert seen["opened"] <= width, "it scrolls sideways once everything is open"
    assert seen["wide"] == []
    top, bottom = seen["decision"]
    assert 0 <= top < bottom <= height / 2, "the decision is what is seen first"
    assert seen["faint"] == [], "text that is hard to read (WCAG AA asks for 4.5)"
    assert seen["keyboard"]
    assert seen["resources"] == 0, "it loads something"
    assert (sum(seen["page"]) < 3 * 64) == dark
    assert seen["pictures"] > 10
