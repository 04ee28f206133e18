// Reads /metrics every two seconds and draws what it says. What is shown as text never becomes markup.
"use strict";

const EVERY_MS = 2000;
const KEPT = 150; // five minutes
const RECENT = 15; // half a minute, for percentiles
const LEAST = 30; // a minute: what a chart shows at least
const history = [];

function parse(text) {
  const samples = new Map();
  for (const line of text.split("\n")) {
    if (!line || line[0] === "#") continue;
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] || "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    if (!samples.has(found[1])) samples.set(found[1], []);
    samples.get(found[1]).push({ labels, value: Number(found[3]) });
  }
  return samples;
}

const of = (look, name) => look.samples.get("pgbouncer_" + name) || [];
const sum = (look, name) => of(look, name).reduce((total, sample) => total + sample.value, 0);
const key = (labels) => JSON.stringify([labels.database, labels.user]);

// The value of a metric for one pool.
function at(look, name, pool) {
  const found = of(look, name).find((sample) => key(sample.labels) === pool);
  return found ? found.value : 0;
}

// Buckets of a histogram as [bound in seconds, count], added up over pools or of one of them.
function buckets(look, name, pool) {
  const counts = new Map();
  for (const { labels, value } of of(look, name + "_seconds_bucket")) {
    if (pool && key(labels) !== pool) continue;
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    counts.set(bound, (counts.get(bound) || 0) + value);
  }
  return counts;
}

// A percentile of what came between two looks, in seconds; null when nothing came.
function percentile(older, newer, name, share, pool) {
  const before = buckets(older, name, pool);
  const grown = [...buckets(newer, name, pool)].map(([bound, count]) => [bound, count - (before.get(bound) || 0)]);
  grown.sort((a, b) => a[0] - b[0]);
  const total = grown.length ? grown[grown.length - 1][1] : 0;
  if (total <= 0) return null;
  const rank = total * share;
  let [low, below] = [0, 0];
  for (const [bound, count] of grown) {
    if (count >= rank) {
      if (bound === Infinity) return low;
      // the first bucket is mostly of those who did not wait at all
      if (low === 0) return name === "client_wait" ? 0 : bound / 2;
      return low + ((bound - low) * (rank - below)) / (count - below);
    }
    [low, below] = [bound, count];
  }
  return low;
}

function rate(older, newer, total) {
  const seconds = (newer.time - older.time) / 1000;
  return seconds > 0 ? Math.max(0, total(newer) - total(older)) / seconds : 0;
}

function duration(seconds) {
  if (seconds === null) return "–";
  if (seconds === 0) return "0";
  if (seconds < 0.001) return Math.round(seconds * 1e6) + " µs";
  if (seconds < 0.9995) return Number((seconds * 1e3).toPrecision(seconds < 0.01 ? 2 : 3)) + " ms";
  return (seconds < 10 ? Number(seconds.toFixed(1)) : Math.round(seconds)) + " s";
}

function number(value) {
  if (value >= 1e6) return (value / 1e6).toFixed(1) + " M";
  if (value >= 1e4) return (value / 1e3).toFixed(1) + " k";
  return value >= 100 || Number.isInteger(value) ? String(Math.round(value)) : value.toFixed(1);
}

function element(name, attributes, ...children) {
  const svg = ["svg", "path", "rect", "line", "text"].includes(name);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  made.append(...children);
  return made;
}

function tiles(older, newer) {
  const waiting = sum(newer, "pools_client_waiting_connections");
  const busy = sum(newer, "pools_server_active_connections");
  const servers = sum(newer, "used_servers");
  const errors = (look) => sum(look, "errors_total");
  const shown = [
    ["clients", number(sum(newer, "used_clients")), false],
    ["waiting clients", number(waiting), waiting > 0],
    ["servers in use", `${number(busy)} of ${number(servers)}`, false],
    ["queries/s", number(rate(older, newer, (look) => sum(look, "stats_queries_pooled_total"))), false],
    ["transactions/s", number(rate(older, newer, (look) => sum(look, "stats_sql_transactions_pooled_total"))), false],
    ["errors/s", number(rate(older, newer, errors)), rate(older, newer, errors) > 0],
  ];
  document.getElementById("tiles").replaceChildren(...shown.map(([name, value, alarm]) =>
    element("div", { class: alarm ? "tile alarm" : "tile" }, element("b", {}, value), element("span", {}, name))));
}

// The next of 1, 2, 4, 6, 8, 10, 20, ...: halves of these are short numbers too.
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 4, 6, 8, 10].find((step) => step * power >= value * 0.999);
}

// Lines over the kept looks. `series`: names with one value for each look, null where there is none.
function chart(title, series, unit) {
  const [width, height, top, left, bottom] = [600, 165, 8, 58, 22];
  const values = series.flatMap(([, points]) => points).filter((value) => value !== null);
  const most = round(Math.max(...values, unit === duration ? 1e-4 : 1));
  const shown = Math.max(LEAST, history.length);
  const x = (index) => left + ((width - left - 4) * (shown - history.length + index)) / (shown - 1);
  const y = (value) => top + (height - top - bottom) * (1 - value / most);
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title });
  for (const share of [0, 0.5, 1]) {
    svg.append(element("line", { class: "grid", x1: left, x2: width, y1: y(most * share), y2: y(most * share) }));
    svg.append(element("text", { x: left - 6, y: y(most * share) + 4, "text-anchor": "end" }, unit(most * share)));
  }
  const ago = Math.round((shown * EVERY_MS) / 1000);
  svg.append(element("text", { x: left, y: height - 5 }, ago < 120 ? ago + " s ago" : Math.round(ago / 60) + " min ago"));
  svg.append(element("text", { x: width - 4, y: height - 5, "text-anchor": "end" }, "now"));
  series.forEach(([, points], index) => {
    let [path, pen] = ["", "M"];
    points.forEach((value, at) => {
      if (value !== null) path += `${pen}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
      pen = value === null ? "M" : "L";
    });
    svg.append(element("path", { class: "c" + index, d: path }));
  });
  const keys = series.map(([name], index) => element("span", { class: "key k" + index }, name));
  return element("div", { class: "chart" }, element("h3", {}, title, element("span", {}, ...keys)), svg);
}

function charts() {
  const each = (value) => history.map((look, index) => (index ? value(history[index - 1], look, history[Math.max(0, index - RECENT)]) : null));
  const now = (name) => history.map((look) => sum(look, name));
  const per = (name) => each((older, newer) => rate(older, newer, (look) => sum(look, name)));
  const late = (name, share) => each((_, newer, base) => percentile(base, newer, name, share));
  document.getElementById("charts").replaceChildren(
    chart("Throughput per second", [["queries", per("stats_queries_pooled_total")], ["transactions", per("stats_sql_transactions_pooled_total")]], number),
    chart("Connections", [["servers in use", now("pools_server_active_connections")], ["servers", now("used_servers")],
      ["clients waiting", now("pools_client_waiting_connections")]], number),
    chart("Wait for a server", [["p50", late("client_wait", 0.5)], ["p95", late("client_wait", 0.95)], ["p99", late("client_wait", 0.99)]], duration),
    chart("Query time", [["p50", late("query", 0.5)], ["p95", late("query", 0.95)], ["p99", late("query", 0.99)]], duration));
}

// What the servers of a pool do, as a bar.
function bar(parts, whole) {
  const svg = element("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" });
  let from = 0;
  for (const [kind, count] of [...parts, ["free", whole - parts.reduce((total, [, count]) => total + count, 0)]]) {
    const width = whole > 0 ? (100 * Math.max(0, count)) / whole : 0;
    svg.append(element("rect", { class: "fill-" + kind, x: from, y: 0, width, height: 8 }));
    from += width;
  }
  return svg;
}

function pool(labels, older, newer) {
  const name = key(labels);
  const value = (metric) => at(newer, "pools_" + metric, name);
  const [busy, idle] = [value("server_active_connections"), value("server_idle_connections")];
  const other = value("server_used_connections") + value("server_testing_connections") + value("server_login_connections");
  const size = Math.max(value("size"), busy + idle + other);
  const waiting = value("client_waiting_connections");
  const causes = of(newer, "pools_client_waiting_by_cause")
    .filter((sample) => sample.value > 0 && key(sample.labels) === name).map((sample) => sample.labels.cause.replaceAll("_", " "));
  const queries = (look) => at(look, "query_seconds_count", name);
  const late = (metric, share) => duration(percentile(older, newer, metric, share, name));
  const cell = (text, alarm) => element("td", { class: alarm ? "n alarm" : "n" }, text);
  return element("tr", {},
    element("td", {}, labels.database), element("td", {}, labels.user),
    element("td", {}, bar([["busy", busy], ["idle", idle], ["other", other]], size), `${busy} of ${size}`),
    cell(number(value("client_active_connections"))), cell(number(waiting), waiting > 0), element("td", {}, causes.join(", ")),
    cell(waiting ? duration(value("client_longest_wait_seconds")) : "–"), cell(number(rate(older, newer, queries))),
    cell(late("client_wait", 0.5)), cell(late("client_wait", 0.95)), cell(late("client_wait", 0.99)),
    cell(late("query", 0.5)), cell(late("query", 0.99)));
}

function state(text, bad) {
  const shown = document.getElementById("state");
  shown.textContent = text;
  shown.className = bad ? "bad" : "";
}

async function look() {
  const [metrics, ready] = await Promise.all([fetch("/metrics"), fetch("/readyz")]);
  if (!metrics.ok) throw new Error("no metrics");
  history.push({ time: performance.now(), samples: parse(await metrics.text()) });
  if (history.length > KEPT) history.shift();
  state(ready.ok ? "serving" : (await ready.text()).trim(), !ready.ok);
  const newest = history[history.length - 1];
  const before = history[Math.max(0, history.length - 2)];
  const base = history[Math.max(0, history.length - 1 - RECENT)];
  document.getElementById("version").textContent = of(newest, "version_info").map((sample) => sample.labels.version).join();
  tiles(before, newest);
  charts();
  const pools = of(newest, "pools_client_active_connections").map((sample) => sample.labels).filter((labels) => labels.database !== "pgbouncer");
  pools.sort((a, b) => at(newest, "pools_client_waiting_connections", key(b)) - at(newest, "pools_client_waiting_connections", key(a)));
  document.getElementById("pools").replaceChildren(...pools.slice(0, 50).map((labels) => pool(labels, base, newest)));
  document.body.dataset.looks = String(history.length);
}

async function forever() {
  try {
    await look();
  } catch {
    state("does not answer", true);
  }
  setTimeout(forever, EVERY_MS);
}

forever();
