// The search panel: images and captions by words, by an image or both, as they are typed.

import { hasToken, imageAt, request } from "./api.js";
import { counted, dataUrl, debounced, el, field, Latest, percent, ImageField, Status } from "./parts.js";

const PAUSE = 160; // milliseconds after the last key
const THUMBNAIL = 320;
const WHOLE = 1024;
const MOST = 1000; // hits that the server gives
const SMALL = 128; // pixels: enlarged more than a little, images like icons are but blurred

/** Return the panel. into(): other panels that take an image; open(name, image) shows it there. */
export function searchPanel(index, { open, into }) {
  const latest = new Latest();
  const status = new Status();
  const soon = debounced(search, PAUSE);
  const query = el("input", {
    type: "search",
    name: "query",
    placeholder: index.text_queries ? "What do you want to see?" : "These images are found by an image alone",
    "aria-label": "Words to look for",
    autocomplete: "off",
    enterkeyhint: "search",
    disabled: !index.text_queries,
    oninput: soon,
  });
  const by = el(
    "select",
    { name: "by", disabled: !index.text_queries, onchange: search },
    el("option", { value: "both" }, "words and look"),
    el("option", { value: "words" }, "words"),
    el("option", { value: "vectors" }, "look"),
  );
  const top = el(
    "select",
    { name: "top", onchange: search },
    ...[20, 50, 100].map((number) => el("option", { value: number }, String(number))),
  );
  const column = el(
    "select",
    { name: "column", onchange: soon },
    el("option", { value: "" }, "any"),
    ...(index.columns ?? []).map((name) => el("option", { value: name }, name)),
  );
  const value = el("input", {
    type: "text",
    name: "value",
    "aria-label": "Value of the column",
    autocomplete: "off",
    onchange: soon, // half of a value or of a folder's name finds nothing
  });
  const folder = el("input", { type: "text", name: "folder", list: "folders", autocomplete: "off", onchange: soon });
  const folders = el("datalist", { id: "folders" }, ...(index.folders ?? []).map((name) => el("option", { value: name })));
  const kinds = ["Images", "Captions"].map((text, number) =>
    el(
      "label",
      {},
      el("input", { type: "radio", name: "kind", value: text.toLowerCase(), checked: number === 0, onchange: search }),
      text,
    ),
  );
  const image = new ImageField("Image to find the like of", search, { small: true });
  const list = el("ul", { class: "found" });
  const more = el("button", { type: "button", class: "further", onclick: () => search(pages + 1) }, "Show more");
  let pages = 1;
  const examples = el(
    "div",
    { class: "chips", role: "group", "aria-label": "Examples" },
    ...(index.text_queries ? (index.examples ?? []) : []).map((text) =>
      el("button", { type: "button", class: "chip", onclick: () => ((query.value = text), search()) }, text),
    ),
  );
  const refine = el(
    "details",
    { class: "refine" },
    el("summary", {}, "Refine"),
    el(
      "div",
      { class: "row" },
      field("Find by", by),
      field("How many", top),
      field("In the folder", folder),
      folders,
      index.columns?.length ? el("div", { class: "row" }, field("Where column", column), field("is", value)) : null,
    ),
    index.text_queries ? el("p", { class: "note" }, "cat -dog leaves out dogs, 2:cat counts twice, \"hot dog\" stays together.") : null,
  );
  const form = el(
    "form",
    { role: "search", class: "search", onsubmit: (event) => (event.preventDefault(), search()) },
    el("div", { class: "line" }, image.node, query, el("button", { class: "main" }, "Search")),
    el(
      "div",
      { class: "row" },
      index.captions_searchable
        ? el("fieldset", { class: "kinds" }, el("legend", { class: "sr" }, "What to find"), ...kinds)
        : null,
      refine,
    ),
  );
  const origin = index.run ? el("p", { class: "note" }, `The run ${index.run} searches.`) : null;
  const node = el("section", { class: "panel" }, form, status.node, examples, origin, list, more);
  const draws = new Map(); // of images that are not near yet: browsers wait for that only where `src` is an address
  const near = new IntersectionObserver((entries) => entries.forEach(come), { rootMargin: "400px" });
  let drawing = new AbortController();
  welcome();

  function come({ isIntersecting, target }) {
    if (!isIntersecting) return;
    near.unobserve(target);
    draws.get(target)?.();
    draws.delete(target);
  }

  /** Show hits instead of those before, whose images are not waited for any more. */
  function fill(...items) {
    drawing.abort();
    drawing = new AbortController();
    near.disconnect();
    draws.clear();
    list.replaceChildren(...items.map((item) => item()));
  }

  function asked() {
    const body = {
      query: query.value.trim(),
      by: by.value,
      captions: form.elements.kind?.value === "captions",
      top: Math.min(pages * Number(top.value), MOST),
    };
    if (image.value !== null) body.image = image.value;
    if (folder.value.trim()) body.folder = folder.value.trim();
    if (column.value && value.value.trim()) body.where = { [column.value]: value.value.trim() };
    return body;
  }

  function welcome() {
    fill();
    more.hidden = true;
    examples.hidden = false;
    const ways = index.text_queries ? "Type what you want to see, or drop" : "Drop";
    status.say(
      index.images
        ? `${ways} an image to find others like it, among ${counted(index.images, "image")}.`
        : "The index is empty: it holds no image yet. Fill it with eve index.",
    );
  }

  /** Search; an event as argument starts again with the first page. */
  function search(page) {
    soon.stop(); // Enter does not wait for a pause, nor search again after it
    pages = page > 1 ? page : 1;
    const body = asked();
    if (!body.query && !body.image) {
      latest.stop();
      welcome();
      return;
    }
    examples.hidden = true;
    status.wait("Searching …");
    latest.run(
      (signal) => request("/v1/search", { body, signal }),
      (found) => show(found, body),
      (error) => {
        fill();
        more.hidden = true;
        status.fail(error);
      },
    );
  }

  function show({ hits, nothing_fits, note, seconds }, { captions, query, top: wanted }) {
    more.hidden = hits.length < wanted || wanted === MOST;
    const near = hits.filter((hit) => hit.near).length;
    const among = captions ? counted(index.captions, "caption") : counted(index.images, "image");
    const time = seconds < 1 ? `${Math.max(1, Math.round(1000 * seconds))} ms` : `${seconds.toFixed(1)} s`;
    const asked = query ? ` “${query}”` : "";
    const about = note ? `${note[0].toUpperCase()}${note.slice(1)}. ` : "";
    status.say(
      hits.length && nothing_fits
        ? `${about}Nothing here fits${asked}. The nearest of ${among}:`
        : hits.length
        ? `${about}${hits.length} of ${among} in ${time}${near ? `, ${counted(near, "near-duplicate")}` : ""}`
        : `${about}Nothing here fits${asked}, among ${among}.`,
    );
    list.classList.toggle("texts", captions);
    fill(...hits.map((hit, place) => () => shown(hit, captions, place === 0)));
  }

  function shown(hit, captions, isFirst) {
    const text = captions ? hit.name : hit.captions?.[0];
    const image = el("img", { alt: text ?? hit.name, loading: "lazy" });
    const isGone = () => image.classList.add("gone");
    const { signal } = drawing;
    const draw = () => drawn(image, hit, THUMBNAIL, signal).catch(isGone);
    if (hasToken()) {
      draws.set(image, draw);
      near.observe(image);
    } else draw();
    image.addEventListener("error", isGone);
    if (isFirst) image.addEventListener("load", () => list.classList.toggle("icons", image.naturalWidth < SMALL));
    const { match, fit } = hit;
    const cosine = hit.score?.toFixed(3) ?? "";
    const score = match === null || match === undefined ? cosine : `${cosine} · match ${percent(match)}`;
    const title = `Cosine of the features; words also decide the order${fit === null ? "" : `; fit ${percent(fit)}`}`;
    return el(
      "li",
      {},
      el(
        "button",
        {
          type: "button",
          class: "thumb",
          title: hit.name,
          "aria-label": `Show ${text ?? hit.name}`,
          onclick: () => enlarge(hit, text),
        },
        image,
      ),
      el(
        "div",
        { class: "about" },
        text ? el("p", { class: "text" }, text) : null,
        text ? null : el("p", { class: "name", title: hit.name }, hit.name),
        el("p", { class: "why", "data-by": hit.by }, hit.why),
        hit.near ? el("p", { class: "near", title: hit.near }, `near-duplicate of ${hit.near.split("/").pop()}`) : null,
      ),
      el(
        "div",
        { class: "foot" },
        el("span", { class: "score", title }, score),
        el("button", { type: "button", class: "more", onclick: () => moreLike(hit) }, "More like this"),
      ),
    );
  }

  /** Show a hit in a dialog, which Escape closes. */
  function enlarge(hit, text) {
    const image = el("img", { alt: text ?? hit.name });
    const problem = el("p", { class: "status", role: "alert", "data-state": "failed" });
    drawn(image, hit, WHOLE)
      .then(() => image.decode())
      .catch(() => {
        image.remove();
        problem.textContent = "This image cannot be shown. Its file may be gone or another one since it was indexed.";
      });
    const close = () => dialog.close();
    const use = (label, run) => el("button", { type: "button", onclick: () => (close(), run()) }, label);
    const places = into().map((panel) =>
      use(panel.title, () =>
        fetched(hit).then(
          (data) => open(panel.name, data),
          (error) => status.fail(error),
        ),
      ),
    );
    const facts = [hit.name, hit.why, hit.score !== null && `score ${hit.score.toFixed(3)}`, hit.near && `near-duplicate of ${hit.near}`].filter(Boolean);
    const dialog = el(
      "dialog",
      {
        class: "large",
        "aria-label": text ?? hit.name,
        onclose: () => dialog.remove(),
        onclick: (event) => event.target === dialog && close(),
      },
      image,
      problem,
      ...(hit.captions ?? []).map((caption) => el("p", {}, caption)),
      el("p", { class: "note" }, facts.join(" · ")),
      el(
        "p",
        { class: "buttons" },
        use("More like this", () => moreLike(hit)),
        ...places,
        el("button", { type: "button", class: "main", onclick: close }, "Close"),
      ),
    );
    document.body.append(dialog);
    dialog.showModal();
  }

  /** Show the image of a hit. */
  async function drawn(image, hit, size, signal) {
    for (const end of ["load", "error"]) image.addEventListener(end, () => URL.revokeObjectURL(image.src)); // if it is one
    image.src = await imageAt(hit.image, size, signal);
  }

  async function fetched(hit) {
    return dataUrl(await request(`${hit.image}?size=${WHOLE}`, { blob: true }));
  }

  async function moreLike(hit) {
    try {
      query.value = "";
      form.elements.kind?.forEach?.((radio) => (radio.checked = radio.value === "images"));
      image.set(await fetched(hit));
      scrollTo({ top: 0, behavior: "instant" });
      image.input.focus({ preventScroll: true }); // the button that was pressed goes with its hit
    } catch (error) {
      status.fail(error);
    }
  }

  return {
    name: "search",
    title: "Search",
    node,
    image: null,
    take: (file) => image.take(file),
    shown: () => matchMedia("(hover: hover)").matches && query.focus(),
  };
}
