// Without this script, the page has static figures and plain tables.

const narrow = 210; // pixels that a panel needs, to be beside others
const widest = 800;

function fit(chart, width) {
  const panels = chart.concat ?? [chart.spec ?? chart];
  if (width / chart.columns < narrow) chart.columns = 1;
  const room = Math.min(width / (chart.columns ?? 1), widest);
  for (const panel of panels) panel.width = Math.floor(room) - chart.usermeta.margin - 8;
  chart.config.title.limit = width;
  if (width < 3 * narrow) Object.assign(chart.config.legend, { columns: 1, labelLimit: width - 70, labelFontSize: 9 });
  return chart;
}

async function draw(figure) {
  const chart = JSON.parse(figure.querySelector("script").textContent);
  const place = figure.querySelector(".drawn");
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  await vegaEmbed(place, fit(chart, figure.clientWidth), {
    mode: "vega-lite",
    renderer: "svg",
    actions: { export: true, source: false, compiled: false, editor: false },
    tooltip: { theme: dark ? "dark" : "light" },
  });
  figure.classList.add("is-drawn");
}

function makeSortable(table) {
  const searching = table.tBodies[0].rows.length > 5;
  const layout = { topStart: searching ? "search" : null, topEnd: null, bottomStart: null, bottomEnd: null };
  const language = { search: "", searchPlaceholder: "Filter rows", zeroRecords: "No such row" };
  new DataTable(table, { paging: false, autoWidth: false, order: [], searching, layout, language });
}

// Charts and tables of closed details wait until they are opened.
function enhance(part) {
  const isNew = (element) => element.checkVisibility() && !element.dataset.enhanced;
  for (const element of [...part.querySelectorAll(".chart, table.sortable")].filter(isNew)) {
    element.dataset.enhanced = "yes";
    element.matches("table") ? makeSortable(element) : draw(element);
  }
}

document.body.classList.add("has-scripts");
document.addEventListener("toggle", (event) => enhance(event.target), true);
enhance(document);
