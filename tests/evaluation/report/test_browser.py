"""The page in a real browser: policy, script and print work, in light and in dark."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import subprocess
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from evaluation.report.html import write_html
from tests.evaluation.report import made_up
from tests.evaluation.report.test_html import jpeg

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason=f"no browser here: none of {', '.join(BROWSERS)}"
)


def browse(page: Path, *options: str, profile: Path) -> tuple[str, str]:
    """What a headless browser prints of a page, and what its console says."""
    ended = subprocess.run(
        [
            BROWSER,
            *("--headless", "--disable-gpu", "--hide-scrollbars", "--no-first-run"),
            *("--enable-logging=stderr", "--force-device-scale-factor=1"),
            f"--user-data-dir={profile}",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    said = [line for line in ended.stderr.splitlines() if "CONSOLE" in line]
    return ended.stdout, "\n".join(said)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_html(made_up.evaluation(), path, pictures=jpeg)
    return path


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    return tmp_path_factory.mktemp("profile")


@pytest.mark.slow
def test_the_console_is_silent_and_the_script_has_run(page, profile):
    """Every chart has the read-out that the script alone adds."""
    document, said = browse(page, "--dump-dom", profile=profile)
    assert said == ""
    assert document.count("<output") == document.count('class="plot ') == 12


@pytest.mark.slow
def test_a_policy_broken_would_be_seen(page, profile, tmp_path):
    """Or the silence above would prove nothing."""
    broken = tmp_path / "broken.html"
    text = page.read_text(encoding="utf-8")
    broken.write_text(text.replace("</main>", "<script>alert(1)</script></main>"), encoding="utf-8")
    assert "Content Security Policy" in browse(broken, "--dump-dom", profile=profile)[1]


@pytest.mark.slow
def test_a_chart_is_read_out_under_the_pointer(page, profile, tmp_path):
    """Within the page's policy: the script that moves the pointer is the only one added to it."""
    script = """
        const plot = document.querySelector("svg.plot.roc"), box = plot.getBoundingClientRect();
        const middle = {clientX: box.left + 0.6 * box.width, clientY: box.top + 20};
        plot.dispatchEvent(new PointerEvent("pointermove", middle));
        document.title = plot.nextElementSibling.textContent;
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8").replace("script-src ", f"script-src 'sha256-{digest}' ")
    moved = tmp_path / "moved.html"
    moved.write_text(text.replace("</html>", f"<script>{script}</script></html>"), "utf-8")
    document, said = browse(moved, "--dump-dom", profile=profile)
    assert said == ""
    read = re.search(r"<title>(.*?)</title>", document, re.DOTALL)[1].splitlines()
    assert re.fullmatch(r"false accept rate 0\.0\d+", read[0])
    for line, model in zip(read[1:], ("r50_rate1.0", "r50_rate0.9")):
        assert re.fullmatch(rf"{model}  9\d\.\d+ %", line)
    assert len(read) == 3


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "number"), [("dark", 0), ("light", 1)])
def test_it_follows_the_color_scheme(scheme, number, page, profile, tmp_path):
    picture = tmp_path / "page.png"
    options = (f"--blink-settings=preferredColorScheme={number}", "--window-size=1280,1600")
    _, said = browse(page, f"--screenshot={picture}", *options, profile=profile)
    assert said == ""
    with Image.open(picture) as image:
        gray = image.convert("L")
        assert image.size == (1280, 1600)
        background = gray.getpixel((5, 5))
        assert background < 40 if scheme == "dark" else background > 230
        assert len(gray.getcolors()) > 50  # there is something on it


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 1280])
def test_the_page_itself_never_scrolls_sideways(width, profile, tmp_path):
    """Wide tables and long names do, within their boxes: ten models, a name of 300 letters."""
    evaluation = made_up.evaluation(10, places=("a" * 300,), searches=False)
    path = tmp_path / "wide.html"
    write_html(evaluation, path)
    text = path.read_text(encoding="utf-8")
    measure = "<script>document.title = document.documentElement.scrollWidth</script></body>"
    text = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("</body>", measure)
    path.write_text(text, encoding="utf-8")
    # Headless windows are no narrower than 500 pixels, frames are.
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<iframe src=wide.html width={width} height=900></iframe><script>onload = () => "
        "{ document.title = document.querySelector('iframe').contentDocument.title }</script>"
    )
    document, _ = browse(frame, "--dump-dom", "--allow-file-access-from-files", profile=profile)
    assert int(re.search(r"<title>(\d+)</title>", document)[1]) <= width


@pytest.mark.slow
def test_it_prints_to_several_pages_of_text(page, profile, tmp_path):
    pdf = tmp_path / "report.pdf"
    browse(page, f"--print-to-pdf={pdf}", "--no-pdf-header-footer", profile=profile)
    content = pdf.read_bytes()
    assert content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", content)) > 3
    streams = []
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", content, re.DOTALL):
        try:
            streams.append(zlib.decompress(stream))
        except zlib.error:
            continue
    assert any(b"beginbfchar" in stream or b"beginbfrange" in stream for stream in streams)
    if shutil.which("pdftotext"):
        text = subprocess.run(["pdftotext", pdf, "-"], capture_output=True, text=True).stdout
        for words in ("2 models on 3 sets", "How every number was made", "EER, %", "Caucasian"):
            assert words in text


@pytest.mark.slow
def test_twenty_sets_of_ten_models_are_a_page_of_a_few_megabytes(tmp_path, profile):
    """And it opens without a word."""
    places = tuple(f"set{i}.bin" for i in range(20))
    evaluation = made_up.evaluation(10, places)
    lighter = [
        replace(result, hardest={kind: pairs[:3] for kind, pairs in result.hardest.items()})
        for result in evaluation.results
    ]
    path = tmp_path / "many.html"
    write_html(replace(evaluation, results=lighter), path, pictures=jpeg)
    assert path.stat().st_size < 16 << 20
    document, said = browse(path, "--dump-dom", profile=profile)
    assert said == ""
    assert document.rstrip().endswith("</html>")
