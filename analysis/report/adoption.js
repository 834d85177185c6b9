"use strict";
/* Of a model that was given another gate: what it cost, and its layers and words before and after. */
function showAdoption(adoption) {
  show("adoption");
  const names = Object.keys(adoption.loss), losses = Object.values(adoption.loss);
  if (adoption.curves.length) show("plot-adoption-curve"); // before the first is drawn: both share the width
  // The bare swap may lose so much more that nothing else could be told apart: its bar is then cut.
  const most = Math.max(...losses.filter((_, i) => names[i] !== "swapped")), cut = (loss) => loss > 2 * most;
  plot("plot-adoption-loss", () => [[{ type: "bar", x: names, y: losses.map((loss) => (cut(loss) ? 1.5 * most : loss)), marker: { color: names.map((name) => at(name === "tuned" ? "accent" : name === "control" ? "second" : "grey")) }, text: losses.map((loss) => fixed(loss) + (cut(loss) ? " (cut)" : "")), textposition: "outside", cliponaxis: false, customdata: losses, hoverinfo: "x+text" }],
    layout("", "loss, nats a token", { y: { range: [0, losses.some(cut) ? 1.7 * most : 1.12 * Math.max(...losses)] }, rest: { showlegend: false } })]);
  if (adoption.curves.length) {
    const colors = { adopted: "accent", control: "second" };
    plot("plot-adoption-curve", () => [adoption.curves.map(({ name, steps, losses }) => line(name, steps, losses, colors[name])), layout("step", "validation loss, nats a token", {})]);
  }
  const column = (read) => adoption.layers.map(read);
  const readings = (side) => Object.keys(adoption.layers[adoption.read[0]][side]);
  const curves = [
    ...(adoption.layers[0].distilled === null ? [] : [["distilled", column((row) => row.distilled), "grey", "solid"]]),
    ...["before", "after"].flatMap((side) => readings(side).map((name, i, all) =>
      [`${side}, ${name}`, column((row) => row[side]?.[name] ?? null), side === "before" ? "second" : "accent", i < all.length - 1 ? "dot" : "solid"])),
  ];
  plot("plot-adoption-r2", () => [curves.map(([name, values, color, dash]) => line(name, column((row) => row.layer).filter((_, i) => values[i] !== null), values.filter((value) => value !== null), color, { line: { dash } })), layout("layer", "R² of what the GLU adds", { y: { range: [Math.min(0.5, ...curves.flatMap(([, values]) => values.filter((value) => value !== null))) - 0.03, 1.03] } })]);

  const sqs = adoption.layers[0].c !== undefined;
  const heads = ["layer", ...curves.map(([name]) => `R², ${name}`), "sinks", "their error", "cosine", "overlap", ...(sqs ? ["c", "λ"] : [])];
  table("adoption-table", heads, adoption.layers.map((row, i) => [String(row.layer), ...curves.map(([, values]) => fixed(values[i])), row.sinks === null ? "–" : String(row.sinks), fixed(row.sink_error),
    fixed(row.cosine), fixed(row.overlap), ...(sqs ? [fixed(row.c, 4), fixed(row.lam)] : [])]), -1);

  const visible = (token) => spaced(adoption.vocabulary[token] ?? "");
  const chips = (tokens) => tokens.map((token) => element("code", {}, visible(token)));
  let layer = Math.floor(adoption.read.length / 2), word = 0;
  const vector = (side, rank) => {
    const value = side.values[layer][word][rank], [one, other] = side.likes[layer][word][rank];
    return element("div", { class: value > 0 ? "vector" : "vector negative" }, element("h4", {}, `λ = ${signed(value)}: ${value > 0 ? "for" : "against"} the word`),
      element("div", {}, element("span", { class: "soft" }, "one end "), ...chips(one)), element("div", {}, element("span", { class: "soft" }, "other end "), ...chips(other)));
  };
  function draw() {
    const row = adoption.layers[adoption.read[layer]];
    $("adoption-word").textContent = `“${visible(adoption.tokens[word])}”, layer ${row.layer}: cosine of the forms ${fixed(adoption.cosines[layer][word])}, overlap ${fixed(adoption.overlaps[layer][word])}`;
    for (const name of ["before", "after"]) $(`adoption-${name}`).replaceChildren(...adoption[name].values[layer][word].map((_, rank) => vector(adoption[name], rank)));
    [...$("adoption-layers").children].forEach((tab, i) => tab.setAttribute("aria-selected", i === layer));
    [...$("adoption-words").children].forEach((option, i) => option.setAttribute("aria-selected", i === word));
  }
  $("adoption-layers").append(...adoption.read.map((index, i) => element("button", { type: "button", role: "tab", "aria-selected": false, onclick: () => { layer = i; draw(); } }, String(adoption.layers[index].layer))));
  $("adoption-words").append(...adoption.tokens.map((token, i) => element("button", { type: "button", role: "option", onclick: () => { word = i; draw(); } }, visible(token))));
  draw();
}
if (data.adoption) showAdoption(data.adoption);
