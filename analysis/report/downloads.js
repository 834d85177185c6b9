"use strict";
/* The glossary of the terms on this page, and the plots' numbers and pictures as files. */
if (usedTerms.size) {
  show("glossary");
  $("glossary-list").append(...Object.keys(TERMS).filter((term) => usedTerms.has(term)).flatMap((term) => [element("dt", {}, term), element("dd", {}, TERMS[term])]));
}

function download(name, address) {
  const link = element("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}
const csvCell = (value) => { const text = String(value ?? ""); return /[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text; };
const plain = (text) => (typeof text === "string" ? text.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&") : text); // as `label` was given it
function csvOf(traces) {
  const rows = traces.filter((trace) => trace.hoverinfo !== "skip" || trace.name).flatMap((trace) => Array.from(trace.x ?? [], (x, i) => [trace.name ?? "", x, (trace.customdata ?? trace.y)[i], Array.isArray(trace.text) ? trace.text[i] : ""].map(plain)));
  return [["series", "x", "y", "text"], ...rows].map((row) => row.map(csvCell).join(",")).join("\n") + "\n";
}
const drawn = [...document.querySelectorAll(".plot")].filter((box) => box.data && !box.hidden);
if (drawn.length) {
  show("downloads");
  $("download-list").append(...drawn.map((box) => {
    const title = box.getAttribute("aria-label"), name = box.id.replace(/^plot-/, "");
    const csv = () => download(`${name}.csv`, URL.createObjectURL(new Blob([csvOf(box.data)], { type: "text/csv" })));
    const svg = () => Plotly.toImage(box, { format: "svg", width: 900, height: 520 }).then((address) => download(`${name}.svg`, address));
    return element("li", {}, element("span", {}, title), element("button", { type: "button", "aria-label": `${title}, as CSV`, onclick: csv }, "CSV"), element("button", { type: "button", "aria-label": `${title}, as SVG`, onclick: svg }, "SVG"));
  }));
}
document.documentElement.dataset.ready = "yes";
