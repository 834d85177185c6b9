"use strict";
/* Of a sweep: curves and final figures by configuration, and what each value does. */
function showSweep(found) {
  show("sweep");
  const dashes = ["solid", "dash", "dot", "dashdot"]; // with six colours: 24 lines that differ
  const look = (i) => [`line-${i % 6}`, { line: { dash: dashes[Math.floor(i / 6) % dashes.length] }, trace: { mode: "lines" } }];
  const members = (group) => element("span", {}, ...(group.members.length ? group.members.flatMap(([seed, path], i) => [i ? " " : "", path ? element("a", { href: path }, String(seed)) : String(seed)]) : [group.seeds.join(" ")]));
  const spread = (list, digits) => {
    if (!list.length) return "–";
    const m = mean(list), deviation = Math.sqrt(list.reduce((sum, x) => sum + (x - m) ** 2, 0) / (list.length - 1));
    return fixed(m, digits) + (list.length > 1 ? ` ± ${fixed(deviation, digits)}` : "");
  };
  table("sweep-table", ["configuration", "seeds", "test loss", "test accuracy", "diverged"],
    found.groups.map((group) => [group.name, members(group), spread(group.loss, 4), spread(group.accuracy, 4), String(group.diverged)]));

  const below = { legend: { orientation: "h", y: -0.2, yanchor: "top", font: { size: 10 } } };
  function curves(id, part, title) {
    const groups = found.groups.filter((group) => group[part]);
    if (!groups.length) return;
    $(id).style.height = `${360 + 12 * groups.length}px`;
    plot(id, () => [
      groups.flatMap((group, i) => {
        const [color, more] = look(i), curve = group[part];
        return [...(group.seeds.length > 1 ? band(group.name, curve.epoch, curve.low, curve.high, color) : []), { ...line(group.name, curve.epoch, curve.mean, color, more), legendgroup: group.name }];
      }),
      layout("epoch", title, { y: logTicks(groups.flatMap((group) => [...group[part].low, ...group[part].high])), rest: below }),
    ]);
  }
  const both = found.groups.some((group) => group.validation);
  for (const id of ["plot-sweep-train", ...(both ? ["plot-sweep-validation"] : [])]) show(id); // they share the width
  curves("plot-sweep-train", "train", found.noise ? "training loss (nats, with noise)" : "training loss (nats)");
  if (both) curves("plot-sweep-validation", "validation", "validation loss (nats)");

  const ended = found.groups.filter((group) => group.accuracy.length);
  if (ended.length) {
    $("plot-sweep-final").style.height = `${Math.max(260, 90 + 26 * ended.length)}px`;
    plot("plot-sweep-final", () => [
      [
        { name: "a seed", mode: "markers", x: ended.flatMap((group) => group.accuracy), y: ended.flatMap((group) => group.accuracy.map(() => label(group.name))), marker: { color: at("accent"), size: 7, opacity: 0.6 } },
        { name: "mean", mode: "markers", x: ended.map((group) => mean(group.accuracy)), y: ended.map((group) => label(group.name)), marker: { color: at("ink"), size: 14, symbol: "line-ns-open", line: { width: 2, color: at("ink") } } },
      ],
      layout("test accuracy", "", { y: { autorange: "reversed", type: "category" } }),
    ]);
  }
  // All are there before one is drawn: they share the width.
  if (found.axes.length) show("sweep-axes");
  const ids = found.axes.map((axis) => `plot-axis-${axis.name}`);
  $("axis-plots").append(...found.axes.map((axis, i) => element("div", { class: "plot", id: ids[i], role: "img", "aria-label": `Test accuracy by ${axis.name}` })));
  found.axes.forEach((axis, i) => {
    $(ids[i]).style.height = `${320 + 7 * axis.lines.length}px`;
    plot(ids[i], () => [
      axis.lines.map((own, place) => { const [color, more] = look(place); return line(own.name, own.points.map((point) => point[0]), own.points.map((point) => point[1]), color, { line: more.line }); }),
      layout(axis.name, "test accuracy, mean over seeds", { rest: below }),
    ]);
  });
}
if (data.sweep) showSweep(data.sweep);
