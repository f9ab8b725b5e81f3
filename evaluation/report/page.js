"use strict";
// Reads the curves out under the pointer. The page says all of it without this, in its tables.
for (const plot of document.querySelectorAll("svg.plot")) {
  const [left, top, right, bottom] = plot.dataset.frame.split(" ").map(Number);
  const axis = (text) => {
    const [kind, low, high, percent] = text.split(" ");
    return { log: kind === "log", low: Number(low), high: Number(high), percent: percent === "1" };
  };
  const x = axis(plot.dataset.x), y = axis(plot.dataset.y);
  const at = (scale, part) =>
    scale.log ? scale.low * (scale.high / scale.low) ** part : scale.low + (scale.high - scale.low) * part;
  const write = (scale, value) =>
    scale.percent ? `${+(100 * value).toPrecision(4)} %`
      : scale.log ? value.toPrecision(2) : String(+value.toPrecision(3));
  const curves = [...plot.querySelectorAll("path.line[data-name]")].map((path) => ({
    name: path.dataset.name,
    classes: path.getAttribute("class"),
    points: path.getAttribute("d").slice(1).split("L").map((pair) => pair.split(" ").map(Number)),
  }));
  const height = (points, place) => {
    const after = points.findIndex((point) => point[0] >= place);
    if (after < 0 || (after === 0 && points[0][0] > place)) return null;
    if (after === 0) return points[0][1];
    const [[x0, y0], [x1, y1]] = [points[after - 1], points[after]];
    return x1 === x0 ? y1 : y0 + ((y1 - y0) * (place - x0)) / (x1 - x0);
  };
  const cursor = document.createElementNS("http://www.w3.org/2000/svg", "path");
  cursor.setAttribute("class", "cursor");
  const readout = document.createElement("output");
  readout.className = "readout";
  readout.hidden = true;
  plot.append(cursor);
  plot.after(readout);
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const scale = plot.viewBox.baseVal.width / box.width;
    const place = Math.min(right, Math.max(left, (event.clientX - box.left) * scale));
    cursor.setAttribute("d", `M${place} ${top}V${bottom}`);
    const lines = [`${plot.dataset.xLabel} ${write(x, at(x, (place - left) / (right - left)))}`];
    for (const curve of curves) {
      const down = height(curve.points, place);
      if (down !== null) lines.push(`${curve.name}  ${write(y, at(y, (bottom - down) / (bottom - top)))}`);
    }
    readout.textContent = lines.join("\n");
    readout.hidden = false;
    const onRight = place < (left + right) / 2;
    readout.style.left = onRight ? `${place / scale + 12}px` : "auto";
    readout.style.right = onRight ? "auto" : `${box.width - place / scale + 12}px`;
  });
  plot.addEventListener("pointerleave", () => {
    cursor.removeAttribute("d");
    readout.hidden = true;
  });
}
