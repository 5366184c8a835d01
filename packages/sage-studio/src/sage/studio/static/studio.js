"use strict";
// Everything from the stack goes in as text nodes: nothing here builds markup from data.

const byId = (id) => document.getElementById(id);

function element(tag, { text, className, label, ...attributes } = {}, children = []) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (className) node.className = className;
  if (label) node.dataset.label = label;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const count = (value) => value.toLocaleString("en-US");
const none = "–";

function seconds(value) {
  if (value === null || value === undefined) return none;
  if (value < 1) return `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms`;
  return value < 60 ? `${value.toFixed(1)} s` : `${Math.floor(value / 60)} min ${Math.floor(value % 60)} s`;
}

function bytes(value) {
  if (value < 1024) return `${value} B`;
  return value < 1024 * 1024 ? `${(value / 1024).toFixed(1)} KiB` : `${(value / 1024 / 1024).toFixed(1)} MiB`;
}

function sum(rows, field) {
  return rows.reduce((total, row) => total + row[field], 0);
}

function pair(term, value, className) {
  return element("div", {}, [element("dt", { text: term }), element("dd", { text: value, className })]);
}

function renderTiles({ engines, queues, policy, uptime_s, version }) {
  const ready = engines.filter((engine) => engine.state === "ready").length;
  byId("tiles").replaceChildren(
    pair("Engines ready", `${ready} / ${engines.length}`),
    pair("Running", count(sum(engines, "running"))),
    pair("Waiting", count(sum(queues, "waiting"))),
    pair("Completed", count(sum(queues, "completed"))),
    pair("Shed", count(sum(queues, "shed"))),
    pair("Failed", count(sum(queues, "failed"))),
    pair("Policy", policy, "text"),
    pair("Up for", seconds(uptime_s), "text"),
    pair("Version", version, "text"),
  );
}

function engineCard(engine) {
  const title = [engine.name, element("span", { text: engine.state, className: `state ${engine.state}` })];
  if (engine.random_weights) title.push(element("span", { text: "RANDOM-WEIGHTS", className: "badge" }));
  const cores = engine.cores.length ? engine.cores.join(", ") : "any";
  const load = element("meter", {
    min: 0, max: engine.max_running, value: engine.running,
    "aria-label": `${engine.running} of ${engine.max_running} slots in use`,
  });
  const parts = [
    element("h3", {}, title),
    element("p", { text: `${engine.model} · ${engine.kind}` }),
    load,
    element("dl", {}, [
      pair("Running", `${engine.running} / ${engine.max_running}`),
      pair("Served", count(engine.served)),
      pair("Failed", count(engine.failed)),
      pair("Cores", cores),
    ]),
  ];
  if (engine.restarts) parts.push(element("p", { text: `Restarted ${engine.restarts} times` }));
  if (engine.detail) parts.push(element("p", { text: engine.detail }));
  return element("article", { className: "card" }, parts);
}

function renderRows(table, rows, cells, emptyText) {
  const columns = table.querySelectorAll("th").length;
  const body = rows.map((row) => element("tr", {}, cells(row)));
  if (!rows.length) {
    body.push(element("tr", {}, [element("td", { text: emptyText, className: "empty", colspan: columns })]));
  }
  table.querySelector("tbody").replaceChildren(...body);
}

const cell = (label, text, className) => element("td", { text, label, className });

function queueCells(queue) {
  return [
    cell("Class", queue.request_class),
    cell("Waiting", count(queue.waiting), "n"),
    cell("Oldest", queue.waiting ? seconds(queue.oldest_s) : none, "n"),
    cell("Bytes", bytes(queue.waiting_bytes), "n"),
    cell("Completed", count(queue.completed), "n"),
    cell("Shed", count(queue.shed), "n"),
    cell("Failed", count(queue.failed), "n"),
  ];
}

function decisionCells(decision) {
  const tokens = [decision.prompt_tokens, decision.completion_tokens].map((n) => n ?? none).join(" + ");
  return [
    cell("Time", new Date(decision.at * 1000).toLocaleTimeString("en-GB")),
    cell("Class", decision.request_class),
    cell("Engine", decision.engine ?? none),
    element("td", { label: "Outcome" }, [
      element("span", { text: decision.outcome, className: `state ${decision.outcome}` }),
    ]),
    cell("Queue", seconds(decision.queue_s), "n"),
    cell("TTFT", seconds(decision.ttft_s), "n"),
    cell("Latency", seconds(decision.latency_s), "n"),
    cell("Tokens", tokens, "n"),
    cell("Why", decision.reason, "why"),
  ];
}

function render({ status, decisions, problem }) {
  byId("problem").hidden = !problem;
  byId("problem").textContent = problem;
  show(problem ? "lost" : "live", problem ? "stack not reachable" : "live");
  if (!status) return; // what was last known stays, below the reason why it is not refreshed
  renderTiles(status);
  byId("engines").replaceChildren(...status.engines.map(engineCard));
  renderRows(byId("queues"), status.queues, queueCells, "No queue yet.");
  renderRows(byId("decisions"), decisions, decisionCells, "No request yet.");
}

function show(state, text) {
  byId("live").dataset.state = state;
  byId("live").textContent = text;
}

function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

function start() {
  const system = matchMedia("(prefers-color-scheme: dark)");
  setTheme(localStorage.getItem("theme") ?? (system.matches ? "dark" : "light"));
  system.addEventListener("change", () => {
    if (!localStorage.getItem("theme")) setTheme(system.matches ? "dark" : "light");
  });
  byId("theme").addEventListener("click", () => {
    const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("theme", next);
    setTheme(next);
  });
  const events = new EventSource("/api/events");
  events.addEventListener("message", (event) => render(JSON.parse(event.data)));
  events.addEventListener("error", () => show("lost", "studio not reachable"));
}

start();
