
// What the server is doing, from /metrics.

const POLL_MS = 1000;
const WINDOW = 60;
const GENERATED = "monsoon_generation_tokens_total";
let samples = [], polling = 0;

/** Prometheus text as a map from a series' name, with its labels, to its value. */
function readMetrics(text) {
  const values = new Map();
  for (const line of text.split("\n")) {
    const space = line.lastIndexOf(" ");
    if (line[0] === "#" || space <= 0) continue;
    values.set(line.slice(0, space), Number(line.slice(space + 1)));
  }
  return values;
}

/** The median of what a histogram has counted between two samples, in ms; null where nothing. */
function median(name, from, to) {
  const counts = [];
  for (const [series, value] of to) {
    const bound = series.startsWith(`monsoon_${name}_bucket{`) && /le="([^"]+)"/.exec(series);
    if (!bound) continue;
    const top = bound[1] === "+Inf" ? Infinity : Number(bound[1]);
    counts.push([top, value - (from.get(series) ?? 0)]);
  }
  counts.sort(([a], [b]) => a - b);
  const half = (counts.at(-1)?.[1] ?? 0) / 2;
  if (half <= 0) return null;
  let low = 0, below = 0;
  for (const [bound, count] of counts) {
    if (count >= half) {
      const share = (half - below) / (count - below);
      return 1000 * (bound === Infinity ? low : low + (bound - low) * share);
    }
    [low, below] = [bound, count];
  }
  return null;
}

function put(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text;
}

function showLive() {
  const now = samples.at(-1), before = samples.at(-2) ?? now, from = samples[0];
  const get = (name) => now.values.get(`monsoon_${name}`) ?? 0;
  const percent = (share) => `${(100 * share).toFixed(0)} %`;
  const rate = (a, b) => {
    const tokens = b.values.get(GENERATED) - a.values.get(GENERATED);
    return b.at > a.at ? Math.max(tokens, 0) * 1000 / (b.at - a.at) : 0;
  };
  const rates = samples.slice(1).map((sample, i) => rate(samples[i], sample));
  put("throughput", rate(before, now).toFixed(1));
  const top = Math.max(...rates, 1);
  const point = (r, i) => {
    const x = 120 * (WINDOW - rates.length + i) / (WINDOW - 1), y = 30 - 28 * r / top;
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  };
  $("trend").firstElementChild.setAttribute("points", rates.map(point).join(" "));
  const ttft = median("time_to_first_token_seconds", from.values, now.values);
  const itl = median("inter_token_latency_seconds", from.values, now.values);
  put("ttft", ttft === null ? "–" : seconds(ttft));
  put("itl", itl === null ? "–" : seconds(itl));
  put("running", String(get("num_requests_running")));
  put("waiting", String(get("num_requests_waiting")));
  const kv = get("kv_cache_usage_perc"), asked = get("prefix_cache_queries_total");
  const hits = asked ? get("prefix_cache_hits_total") / asked : 0;
  put("kv", percent(kv));
  put("hits", asked ? percent(hits) : "–");
  $("kv-meter").value = kv;
  $("hits-meter").value = hits;
}

/** Polls while the page is seen and the server answers; connecting again begins anew. */
async function watch() {
  const turn = ++polling;
  samples = [];
  while (turn === polling) {
    if (!document.hidden && $("live").open) {
      try {
        const values = readMetrics(await (await call("metrics")).text());
        if (turn !== polling) return;
        samples.push({ at: performance.now(), values });
        if (samples.length > WINDOW + 1) samples.shift();
        if (values.has(GENERATED)) showLive();
      } catch {
        if (turn === polling) connect();
        return;
      }
    }
    await new Promise((wake) => setTimeout(wake, POLL_MS));
  }
}
