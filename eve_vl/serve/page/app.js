// The page: asks the server for its runs, and shows a tab for each call that one of them allows.

import { request } from "./api.js";
import { forms } from "./forms.js";
import { counted, el } from "./parts.js";
import { reconstructPanel } from "./reconstruct.js";
import { expertsPanel } from "./experts.js";
import { searchPanel } from "./search.js";

const tabs = document.getElementById("tabs");
const main = document.getElementById("panels");
const panels = [];
let active = null;
let image = null; // the last chosen image, with which other panels start

function show(panel, { focus = false } = {}) {
  active = panel;
  for (const each of panels) {
    const isActive = each === panel;
    each.node.hidden = !isActive;
    each.tab.setAttribute("aria-selected", String(isActive));
    each.tab.tabIndex = isActive ? 0 : -1;
  }
  if (image !== null && panel.image && panel.image.value === null) panel.image.set(image);
  document.title = `${panel.title} · EVE`;
  history.replaceState(null, "", `#${panel.name}`);
  if (focus) panel.tab.focus();
  else panel.shown?.();
  panel.tab.scrollIntoView({ block: "nearest", inline: "nearest" });
}

/** Show an image in another panel. */
function open(name, value) {
  const panel = panels.find((each) => each.name === name);
  panel.image.set(value);
  show(panel);
}

function onKey(event) {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const place = panels.indexOf(active);
  const next = step ? (place + step + panels.length) % panels.length : { Home: 0, End: panels.length - 1 }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  show(panels[next], { focus: true });
}

function add(panel) {
  const id = `panel-${panel.name}`;
  panel.tab = el(
    "button",
    {
      type: "button",
      role: "tab",
      id: `tab-${panel.name}`,
      "aria-controls": id,
      onclick: () => show(panel),
      onkeydown: onKey,
    },
    panel.title,
  );
  panel.node.id = id;
  panel.node.setAttribute("role", "tabpanel");
  panel.node.setAttribute("aria-labelledby", `tab-${panel.name}`);
  panels.push(panel);
  tabs.append(panel.tab);
  main.append(panel.node);
}

function takeImages() {
  const isImage = (item) => item.kind === "file" && item.type.startsWith("image/");
  const carries = (event) => [...(event.dataTransfer?.items ?? [])].some((item) => item.kind === "file");
  const overlay = document.getElementById("drop");
  let depth = 0;
  const leave = () => {
    depth = 0;
    overlay.classList.remove("shown");
  };
  document.addEventListener("dragenter", (event) => carries(event) && ++depth && overlay.classList.add("shown"));
  document.addEventListener("dragleave", (event) => carries(event) && --depth <= 0 && leave());
  document.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!carries(event)) return; // a text, which a field takes
    event.preventDefault();
    leave();
    const file = event.dataTransfer.files[0];
    if (file) active?.take(file, event.target);
  });
  document.addEventListener("paste", (event) => {
    const items = [...(event.clipboardData?.items ?? [])];
    const item = items.find(isImage);
    const isTyped = event.target.matches?.("input:not([type=file]), textarea") && items.some((each) => each.kind === "string");
    if (!item || isTyped) return; // programs copy a table or a drawing as both
    event.preventDefault();
    active?.take(item.getAsFile(), document.activeElement);
  });
}

async function start() {
  const { runs, index } = await request("/v1/runs");
  const chosen = (value) => (image = value ?? image);
  const of = (call) => runs.filter((run) => run.calls.includes(call));
  if (index !== null) {
    const into = () => panels.filter((each) => each.name !== "search" && each.image);
    add(searchPanel(index, { open, into }));
  }
  const sample = index?.examples?.[0] ?? ""; // a caption of these images, for placeholders
  for (const form of forms(runs, chosen, sample)) add(form);
  if (of("reconstruct").length) add(reconstructPanel(of("reconstruct"), chosen, sample));
  if (of("experts").length) add(expertsPanel(of("experts"), chosen, sample));
  const facts = [
    index && counted(index.images, "image"),
    index && index.captions && counted(index.captions, "caption"),
    runs.length && `${runs.length > 1 ? "runs" : "run"} ${runs.map((run) => run.name).join(", ")}`,
  ];
  document.getElementById("facts").textContent = facts.filter(Boolean).join(" · ");
  const noted = runs.filter((run) => run.note);
  const whose = noted.length < runs.length ? `${noted.map((run) => run.name).join(", ")}: ` : "";
  if (noted.length) document.getElementById("note").textContent = whose + noted[0].note;
  document.getElementById("starting").remove();
  if (!panels.length)
    throw new Error("These runs have no calls for this page. Start the server with an index to search: --index INDEX.");
  show(panels.find((panel) => `#${panel.name}` === location.hash) ?? panels[0]);
  addEventListener("hashchange", () => {
    const panel = panels.find((each) => `#${each.name}` === location.hash);
    if (panel && panel !== active) show(panel);
  });
  takeImages();
}

start().catch((error) => {
  document.getElementById("starting")?.remove();
  main.append(el("p", { class: "failure", role: "alert" }, error.message));
});
