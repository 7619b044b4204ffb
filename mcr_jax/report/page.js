"use strict";
// The browser of cases. Every text comes from a model or a dataset: it is only ever set as text.
(() => {
  const parse = (id) => JSON.parse(document.getElementById(id).textContent);
  const { models, kinds, rules, cases } = parse("index");
  const list = document.getElementById("list");
  const view = document.getElementById("case");
  const search = document.getElementById("search");
  const filters = [...document.querySelectorAll("select[data-model]")];
  const listing = document.getElementById("listing"); // on a narrow screen the list is folded
  const details = parse("details"); // the first is plain, the others are packed
  let shown = []; // places of the cases that pass search and filters
  let current = -1;
  let opened = 0; // counts openings: a slow one must not overwrite a later one

  function make(tag, props = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(props)) {
      if (name === "class") node.className = value;
      else if (name in node) node[name] = value;
      else node.setAttribute(name, value);
    }
    node.append(...children); // strings become text nodes
    return node;
  }

  async function unpack(packed) {
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return JSON.parse(await new Response(stream).text());
  }

  // The list

  function standing([right, wrong, unresolved]) {
    const total = right + wrong + unresolved;
    if (right === 0) return "never";
    return right === total ? "always" : "sometimes";
  }

  const rows = cases.map((entry, place) => {
    const tallies = entry.tally.map((tally, m) => {
      const total = tally[0] + tally[1] + tally[2];
      const meter = make("span", { class: `meter s${m % 4}` }, make("i"));
      meter.firstChild.style.width = `${total ? (100 * tally[0]) / total : 0}%`;
      const words = `${models[m]}: ${tally[0]} of ${total} right`;
      return make("span", { class: "tally", title: words, "data-model": models[m] },
        meter, make("span", { class: "sr" }, words + ". "),
        make("span", { "aria-hidden": "true" }, total ? `${tally[0]}/${total}` : "–"));
    });
    const button = make("button", { type: "button" },
      make("span", { class: "dx" }, entry.dx),
      make("span", { class: "id" }, entry.id),
      make("span", { class: "tallies" }, ...tallies));
    button.addEventListener("click", () => { fold(true); open(place, true); });
    const row = make("li", {}, button);
    list.append(row);
    return row;
  });

  function filter() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    shown = [];
    cases.forEach((entry, place) => {
      const text = `${entry.id} ${entry.dx}`.toLowerCase();
      const keep = words.every((word) => text.includes(word)) &&
        filters.every((f) => f.value === "all" || f.value === standing(entry.tally[f.dataset.model]));
      rows[place].hidden = !keep;
      if (keep) shown.push(place);
    });
    document.getElementById("shown").textContent = `${shown.length} of ${cases.length} cases`;
    renewSteps();
  }

  function fold(folded) {
    list.classList.toggle("unfolded", !folded);
    listing.setAttribute("aria-expanded", String(!folded));
    listing.textContent = folded ? "List the cases" : "Fold the list";
  }

  // One case

  function badge(sample) {
    const [cls, sign, words] = sample.right === true ? ["yes", "✓", "right"]
      : sample.right === false ? ["no", "✕", sample.kind === "OK" ? "wrong" : kinds[sample.kind]]
      : ["open", "?", kinds[sample.kind === "OK" ? "unjudged" : sample.kind]];
    return make("span", { class: `badge ${cls}` },
      make("span", { "aria-hidden": "true" }, sign + " "), words);
  }

  function pieces(node, sample) { // the trace, its evidence marked
    for (const [text, statements] of sample.trace) {
      if (!statements.length) { node.append(text); continue; }
      const mark = make("mark", { title: `evidence for statement ${statements.join(", ")}` },
        text, make("sup", {}, statements.join(",")));
      mark.dataset.statements = statements.join(" ");
      node.append(mark);
    }
    return node;
  }

  function completion(sample, number, unfolded) {
    // Without a single answer the badge says why, in the answer's place.
    const said = sample.answer === null ? []
      : [make("span", { class: "answer", dir: "auto" }, sample.answer)];
    const node = make("details", { class: "completion" },
      make("summary", {}, make("span", { class: "n" }, String(number)), ...said, badge(sample)));
    const fill = () => {
      if (node.children.length > 1) return;
      if (sample.error) node.append(make("p", { class: "error" }, sample.error));
      if (sample.rule && sample.rule !== "strict") {
        node.append(make("p", { class: "quiet" }, `Answer read: ${rules[sample.rule]}.`));
      }
      if (sample.trace.length && sample.whole) {
        node.append(make("p", { class: "cap" }, "The whole text"),
          pieces(make("pre", { dir: "auto" }), sample));
      } else if (sample.trace.length) {
        node.append(pieces(make("p", { class: "trace", dir: "auto" }), sample));
      } else if (!sample.error) {
        node.append(make("p", { class: "quiet" }, sample.whole ? "No text." : "No reasoning."));
      }
    };
    node.firstChild.addEventListener("click", fill); // before it opens, so that nothing jumps
    node.addEventListener("toggle", () => { if (node.open) fill(); });
    if (unfolded) { fill(); node.open = true; }
    return node;
  }

  function finding(judged, s) {
    const known = judged.filter((verdict) => verdict.found.length > s);
    if (!known.length) return ["open", "–", "not judged"];
    const found = known.filter((verdict) => verdict.found[s]).length;
    const verified = known.some((verdict) => verdict.verified[s]);
    if (known.length > 1) {
      const cls = found === 0 ? "no" : "yes";
      return [cls, found === 0 ? "✕" : "✓", `in ${found} of ${known.length}`];
    }
    if (!found) return ["no", "✕", "not found"];
    return verified ? ["yes", "✓", "found"] : ["weak", "≈", "found, quote not in the trace"];
  }

  function statements(detail) {
    if (!detail.statements.length) return make("p", { class: "quiet" }, "No statements.");
    const head = make("tr", {}, make("th", { scope: "col" }, "The clinician’s statements"),
      ...models.map((name) => make("th", { scope: "col" }, name)));
    const body = detail.statements.map((text, s) => {
      const row = make("tr", { tabIndex: 0 },
        make("th", { scope: "row" }, make("div", {}, make("span", { class: "n" }, String(s + 1)),
          make("span", { dir: "auto" }, text))),
        ...detail.models.map(({ judged }, m) => {
          const [cls, sign, words] = finding(judged, s);
          return make("td", { "data-label": models[m] }, make("span", { class: `badge ${cls}` },
            make("span", { "aria-hidden": "true" }, sign + " "), words));
        }));
      const light = (on) => () => {
        for (const mark of view.querySelectorAll("mark")) {
          mark.classList.toggle("lit", on && mark.dataset.statements.split(" ").includes(String(s + 1)));
        }
      };
      for (const [event, on] of [["mouseenter", 1], ["focus", 1], ["mouseleave", 0], ["blur", 0]]) {
        row.addEventListener(event, light(Boolean(on)));
      }
      return row;
    });
    return make("table", { class: "statements" },
      make("thead", {}, head), make("tbody", {}, ...body));
  }

  function candidate({ samples }, m) {
    const [right, wrong, unresolved] = cases[current].tally[m];
    const total = right + wrong + unresolved;
    const first = samples.findIndex((sample) => sample.answer !== null);
    const node = make("section", { class: `candidate s${m % 4}` },
      make("h4", {}, models[m],
        make("span", {}, total ? `${right} of ${total} right` : "no completions")),
      ...samples.map((sample, i) => completion(sample, i + 1, i === first)));
    if (samples.length > 3) { // a narrow screen shows three at first
      const rest = make("button", { type: "button", class: "rest" }, `All ${samples.length} completions`);
      rest.addEventListener("click", () => {
        node.classList.add("all");
        node.children[4].firstChild.focus();
      });
      node.append(rest);
    }
    return node;
  }

  function step(name, by, key) {
    const button = make("button", { type: "button", class: "step", title: `${name} case (${key})` },
      name);
    button.dataset.by = by;
    button.addEventListener("click", () => go(by));
    return button;
  }

  async function open(place, focus) {
    const turn = ++opened;
    let detail = details[place];
    if (typeof detail === "string") detail = await unpack(detail); // the first needs no waiting
    if (turn !== opened) return;
    rows[current]?.firstChild.removeAttribute("aria-current");
    current = place;
    rows[place].firstChild.setAttribute("aria-current", "true");
    const title = make("h3", { id: "case-title", tabIndex: -1, dir: "auto" }, detail.dx);
    const source = make("p", { class: "source" }, detail.id);
    if (detail.source) source.append(" · ", detail.source);
    if (detail.link) {
      source.append(" · ", make("a", { href: detail.link, rel: "noopener noreferrer" }, "article"));
    }
    view.replaceChildren(
      make("div", { class: "steps" }, step("Previous", -1, "←"),
        make("span", { class: "where" }), step("Next", 1, "→")),
      title, source,
      make("p", { class: "prompt", dir: "auto" }, detail.prompt),
      statements(detail),
      make("div", { class: "candidates" }, ...detail.models.map(candidate)));
    renewSteps();
    location.replace(`#case-${place + 1}`);
    reveal(rows[place]);
    if (focus) {
      title.focus({ preventScroll: true });
      const top = view.getBoundingClientRect().top;
      if (top < 0 || top > 0.6 * innerHeight) view.scrollIntoView();
    }
  }

  function reveal(row) { // scrolls the list only, never the page
    const above = row.getBoundingClientRect().top - list.getBoundingClientRect().top;
    if (above < 0 || above + row.offsetHeight > list.clientHeight) {
      list.scrollTop += above - list.clientHeight / 3;
    }
  }

  function renewSteps() {
    const at = shown.indexOf(current);
    for (const button of view.querySelectorAll(".step")) button.disabled = target(Number(button.dataset.by)) === undefined;
    const where = view.querySelector(".where");
    if (where) where.textContent = at < 0 ? "not in the filter" : `${at + 1} of ${shown.length}`;
  }

  function target(by) {
    const at = shown.indexOf(current);
    return at < 0 ? shown[0] : shown[at + by];
  }

  function go(by) {
    const place = target(by);
    if (place !== undefined) open(place, true);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (event.key === "ArrowLeft" || event.key === "k") go(-1);
    else if (event.key === "ArrowRight" || event.key === "j") go(1);
    else if (event.key === "/") { event.preventDefault(); search.focus(); }
  });
  const narrow = () => {
    filter();
    fold(!search.value && filters.every((f) => f.value === "all"));
  };
  search.addEventListener("input", narrow);
  listing.addEventListener("click", () => fold(list.classList.contains("unfolded")));
  for (const select of filters) select.addEventListener("change", narrow);

  filter();
  const linked = Number(/^#case-(\d+)$/.exec(location.hash)?.[1]) - 1;
  if (linked >= 0 && linked < cases.length) open(linked, true);
  else if (cases.length) open(0, false);
})();
