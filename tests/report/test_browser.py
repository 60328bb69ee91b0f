"""The page in a real browser, headless: no error on the console, every figure drawn, clicks do what they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
INSTALL = "no browser here; apt-get install -y --no-install-recommends chromium"

BEFORE = """
<script>
const errors = [];
console.error = (...what) => errors.push(what.join(" "));
console.warn = (...what) => errors.push(what.join(" "));
addEventListener("error", event => errors.push(event.message));
addEventListener("unhandledrejection", event => errors.push(String(event.reason)));
addEventListener("securitypolicyviolation", event => errors.push("blocked: " + event.blockedURI));
</script>
"""
AFTER = """
<script>
const pause = () => new Promise(resolve => setTimeout(resolve, 50));
drawn.then(async () => {
  const seen = {};
  seen.figures = Object.fromEntries([...document.querySelectorAll(".chart")].map(place => {
    const picture = place.querySelector("svg, canvas");
    return [place.id, picture ? picture.getBoundingClientRect().width : 0];
  }));
  const text = id => document.getElementById(id).innerText;
  seen.closed = getComputedStyle(document.getElementById("drawer")).display;
  const node = [...document.querySelectorAll(".node[data-node]")].find(one => one.textContent.includes("down_proj"));
  node.dispatchEvent(new MouseEvent("click", { bubbles: true }));
  const lane = one => one.closest(".lane").innerText.split("\\n")[0];
  seen.chosen = [...document.querySelectorAll(".node.chosen")].map(lane);
  seen.about = text("drawer");
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
  seen.after_escape = document.getElementById("drawer").hidden;
  document.querySelector(".tokens [data-place]").click();
  seen.teachers = text("teachers");
  seen.marked = document.querySelectorAll(".tokens .teacher").length;
  const list = document.querySelector("select[data-figures]");
  const canvas = () => document.querySelector("#figure-teaching canvas").toDataURL();
  const before = canvas();
  list.value = list.options[list.options.length - 1].value;
  list.dispatchEvent(new Event("change"));
  await pause();
  seen.options = list.options.length;
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  seen.errors = errors;
  document.body.innerHTML = "<pre id=result></pre>";
  document.getElementById("result").textContent = JSON.stringify(seen);
});
</script>
"""


def looked_at(page: Path, width: int, *flags: str) -> dict[str, Any]:
    """What a browser as wide as that sees on the page."""
    text = page.read_text(encoding="utf-8")
    head = text.index("<style>")
    end = text.rindex("</body>")
    probed = page.with_name(f"probed-{width}.html")
    probed.write_text(text[:head] + BEFORE + text[head:end] + AFTER + text[end:], encoding="utf-8")
    assert BROWSER is not None
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", *flags]
    profile = page.with_name(f"profile-{width}")  # one for each, so that none waits for another to end
    command += [f"--window-size={width},900", "--virtual-time-budget=20000", f"--user-data-dir={profile}", "--dump-dom"]
    shown = subprocess.run([*command, probed.as_uri()], capture_output=True, text=True, timeout=240, check=True)
    results = re.findall(r'<pre id="result">(.*?)</pre>', shown.stdout, re.DOTALL)
    assert results, f"the page's script did not come to its end: {shown.stderr[-2000:]}"
    plain = results[0].replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    return json.loads(plain)


@pytest.mark.skipif(BROWSER is None, reason=INSTALL)
@pytest.mark.parametrize(
    ("width", "flags"),
    [(1280, ()), (500, ("--blink-settings=preferredColorScheme=0",))],
    ids=["wide, light", "narrow, dark"],
)
def test_the_page_works(page_file: Path, width: int, flags: tuple[str, ...]) -> None:
    seen = looked_at(page_file, width, *flags)
    assert seen["errors"] == []
    assert len(seen["figures"]) >= 7 and all(size > 100 for size in seen["figures"].values()), seen["figures"]
    assert seen["overflow"] <= 0, "nothing is wider than the page"
    assert seen["closed"] == "none" and seen["after_escape"]
    assert seen["chosen"] == ["auxiliary", "forward", "backward", "descent"]
    for words in ("sim.linear_forward", "sim.linear_descent", "Prefixes hold", "head"):
        assert words in seen["about"]
    assert "was changed most by" in seen["teachers"] and seen["marked"] > 0
    assert seen["options"] >= 2
