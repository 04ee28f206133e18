// Reads /metrics every two seconds and draws what it says. What is shown as text never becomes markup.
"use strict";

const EVERY_MS = 2000;
const KEPT = 150; // five minutes
const RECENT = 15; // half a minute, for percentiles
const LEAST = 30; // a minute: what a chart shows at least
const MOST_ROWS = 50;
const history = []; // looks, null where there was no answer
let [looks, started] = [0, 0];

// One look at the metrics: sums over all pools, and the pools, of which old looks keep nothing.
function digest(text) {
  const look = { time: performance.now(), totals: new Map(), buckets: {}, pools: new Map(), version: "" };
  for (const line of text.split("\n")) {
    if (!line || line[0] === "#") continue;
    const found = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!found) continue;
    const labels = {};
    for (const [, name, value] of (found[2] || "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) {
      labels[name] = value.replace(/\\(.)/g, (_, c) => (c === "n" ? "\n" : c));
    }
    note(look, found[1].replace("pgbouncer_", ""), labels, Number(found[3]));
  }
  return look;
}

function note(look, name, labels, value) {
  if (name === "version_info") look.version = labels.version;
  const pool = labels.database !== undefined && labels.user !== undefined ? poolOf(look, labels) : null;
  if (labels.le !== undefined) {
    const span = name.replace("_seconds_bucket", "");
    const bound = labels.le === "+Inf" ? Infinity : Number(labels.le);
    for (const part of pool ? [look, pool] : [look]) {
      part.buckets[span] ||= new Map();
      part.buckets[span].set(bound, (part.buckets[span].get(bound) || 0) + value);
    }
    return;
  }
  for (const part of pool ? [look, pool] : [look]) part.totals.set(name, sum(part, name) + value);
  if (pool && labels.cause && value > 0) pool.causes.push(labels.cause.replaceAll("_", " "));
}

function poolOf(look, { database, user }) {
  const key = JSON.stringify([database, user]);
  if (!look.pools.has(key)) look.pools.set(key, { key, database, user, totals: new Map(), buckets: {}, causes: [] });
  return look.pools.get(key);
}

// The value of a metric, added up over whatever `part` is: everything, or one pool.
const sum = (part, name) => part.totals.get(name) || 0;

// A percentile of what came between two looks, in seconds; null when nothing came.
function percentile(older, newer, name, share) {
  const before = older.buckets[name] || new Map();
  const grown = [...(newer.buckets[name] || [])].map(([bound, count]) => [bound, count - (before.get(bound) || 0)]);
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

function rate(older, newer, name, seconds) {
  return seconds > 0 ? Math.max(0, sum(newer, name) - sum(older, name)) / seconds : 0;
}

const between = (older, newer) => (newer.time - older.time) / 1000;

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
  const per = (name) => rate(older, newer, name, between(older, newer));
  const shown = [
    ["clients", number(sum(newer, "used_clients")), false],
    ["waiting clients", number(waiting), waiting > 0],
    ["servers in use", `${number(sum(newer, "pools_server_active_connections"))} of ${number(sum(newer, "used_servers"))}`, false],
    ["queries/s", number(per("stats_queries_pooled_total")), false],
    ["transactions/s", number(per("stats_sql_transactions_pooled_total")), false],
    ["errors/s", number(per("errors_total")), per("errors_total") > 0],
  ];
  document.getElementById("tiles").replaceChildren(...shown.map(([name, value, alarm]) =>
    element("div", { class: alarm ? "tile alarm" : "tile" }, element("b", {}, value), element("span", {}, name))));
}

// The next of 1, 2, 4, 6, 8, 10, 20, ...: halves of these are short numbers too.
function round(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 4, 6, 8, 10].find((step) => step * power >= value * 0.999);
}

// Lines over the kept looks, drawn for the width that there is. `series`: names with one value for each look, null where there
// is none.
function draw(card, title, series, unit) {
  const [width, height, top, left, bottom] = [card.clientWidth - 26, 165, 8, 58, 22];
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
  card.append(svg);
}

function charts() {
  const each = (value) => history.map((look, index) => {
    const older = history[index - 1];
    const base = history.slice(Math.max(0, index - RECENT), index).find((look) => look);
    return look && older ? value(older, look, base) : null;
  });
  const now = (name) => history.map((look) => look && sum(look, name));
  const per = (name) => each((older, newer) => rate(older, newer, name, between(older, newer)));
  const late = (name) => [["p50", 0.5], ["p95", 0.95], ["p99", 0.99]].map(([label, share]) =>
    [label, each((_, newer, base) => percentile(base, newer, name, share))]);
  const shown = [
    ["Throughput per second", [["queries", per("stats_queries_pooled_total")], ["transactions", per("stats_sql_transactions_pooled_total")]], number],
    ["Connections", [["servers in use", now("pools_server_active_connections")], ["servers", now("used_servers")],
      ["clients waiting", now("pools_client_waiting_connections")]], number],
    ["Wait for a server", late("client_wait"), duration],
    ["Query time", late("query"), duration],
  ];
  const cards = shown.map(([title, series]) => {
    const keys = series.map(([name], index) => element("span", { class: "key k" + index }, name));
    return element("div", { class: "chart" }, element("h3", {}, title, element("span", {}, ...keys)));
  });
  document.getElementById("charts").replaceChildren(...cards);
  shown.forEach((what, index) => draw(cards[index], ...what));
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

const NEVER = { totals: new Map(), buckets: {} };

// A row of the table. `older`: the same pool before, `seconds` ago.
function row(pool, older, seconds) {
  const value = (metric) => sum(pool, "pools_" + metric);
  const [busy, idle] = [value("server_active_connections"), value("server_idle_connections")];
  const other = value("server_used_connections") + value("server_testing_connections") + value("server_login_connections");
  const size = Math.max(value("size"), busy + idle + other);
  const waiting = value("client_waiting_connections");
  const late = (metric, share) => duration(percentile(older, pool, metric, share));
  const cell = (text, alarm) => element("td", { class: alarm ? "n alarm" : "n" }, text);
  return element("tr", {},
    element("td", {}, pool.database), element("td", {}, pool.user),
    element("td", {}, bar([["busy", busy], ["idle", idle], ["other", other]], size), `${busy} of ${size}`),
    cell(number(value("client_active_connections"))), cell(number(waiting), waiting > 0), element("td", {}, pool.causes.join(", ")),
    cell(waiting ? duration(value("client_longest_wait_seconds")) : "–"), cell(number(rate(older, pool, "query_seconds_count", seconds))),
    cell(late("client_wait", 0.5)), cell(late("client_wait", 0.95)), cell(late("client_wait", 0.99)),
    cell(late("query", 0.5)), cell(late("query", 0.99)));
}

// Those who make clients wait first, then the busiest.
function table(older, newer) {
  const seconds = between(older, newer);
  const before = (pool) => older.pools.get(pool.key) || NEVER;
  const pools = [...newer.pools.values()].filter((pool) => pool.totals.has("pools_size") && pool.database !== "pgbouncer");
  const rank = (pool) => [sum(pool, "pools_client_waiting_connections"), rate(before(pool), pool, "query_seconds_count", seconds)];
  const ranks = new Map(pools.map((pool) => [pool.key, rank(pool)]));
  pools.sort((a, b) => {
    const [mine, theirs] = [ranks.get(a.key), ranks.get(b.key)];
    return theirs[0] - mine[0] || theirs[1] - mine[1] || (a.key < b.key ? -1 : 1);
  });
  document.getElementById("pools").replaceChildren(...pools.slice(0, MOST_ROWS).map((pool) => row(pool, before(pool), seconds)));
  const more = pools.length - MOST_ROWS;
  document.getElementById("more").textContent = !pools.length ? "No pool yet: it is made when its first client logs in."
    : more > 0 ? `${more} more, with fewer waiting clients and queries, are in /metrics.` : "";
}

function state(text, kind) {
  const shown = document.getElementById("state");
  shown.textContent = text;
  shown.className = kind;
  document.title = kind === "good" ? "pgusher" : `pgusher: ${text}`;
  document.body.classList.toggle("stale", kind === "gone");
}

function keep(look) {
  // another process counts from zero
  if (look && sum(look, "process_start_time_seconds") !== started) history.length = 0;
  if (look) started = sum(look, "process_start_time_seconds");
  history.push(look);
  if (history.length > KEPT) history.shift();
  const old = history[history.length - 2 - RECENT];
  if (old) old.pools = null;
}

function show() {
  const newest = history[history.length - 1];
  if (!newest) return;
  document.getElementById("version").textContent = newest.version;
  tiles(history[history.length - 2] || newest, newest);
  charts();
  table(history.slice(-1 - RECENT).find((look) => look), newest);
}

async function look() {
  const [metrics, ready] = await Promise.all([fetch("/metrics"), fetch("/readyz")]);
  if (!metrics.ok) throw new Error("no metrics");
  keep(digest(await metrics.text()));
  state(ready.ok ? "serving" : (await ready.text()).trim(), ready.ok ? "good" : "bad");
  show();
  looks += 1;
  document.body.dataset.looks = String(looks);
}

async function forever() {
  try {
    await look();
  } catch {
    state("does not answer", "gone");
    if (history.length) keep(null);
  }
  setTimeout(forever, EVERY_MS);
}

addEventListener("resize", show);
forever();
