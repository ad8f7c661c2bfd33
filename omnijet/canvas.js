// A panel (chapter 06a_panels) on a canvas, and the pointer over it; anywidget loads this file.
//
// theme, ticks, scaler: colours and axes    painters: one function a mark
// draw: the whole panel                     nearest, towards, describe: marks in reach, in words
// initialize, render: what anywidget calls; which canvas follows which; the pointer and the keys

const TAU = 2 * Math.PI;

// Colours and font of JupyterLab's theme; on a dark page every colour a little lighter.
function theme(el) {
  const css = getComputedStyle(el);
  const get = (name, otherwise) => css.getPropertyValue(name).trim() || otherwise;
  const ctx = document.createElement("canvas").getContext("2d");
  const rgb = (c) => {
    ctx.fillStyle = "#888888";
    ctx.fillStyle = c; // the browser reads every way to write a colour, and ignores what is none
    const hex = ctx.fillStyle.startsWith("#") ? ctx.fillStyle : "#888888";
    return [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
  };
  const [r, g, b] = rgb(get("--jp-layout-color0", "#fff"));
  const dark = 0.3 * r + 0.6 * g + 0.1 * b < 128;
  const lighter = (c) =>
    `rgb(${rgb(c)
      .map((v) => Math.round(v + 0.3 * (255 - v)))
      .join(",")})`;
  const known = { faint: dark ? "#555" : "#ccc" };
  return {
    color: (c) => (known[c] ??= dark ? lighter(c) : c),
    text: dark ? "#e0e0e0" : "#212121",
    page: `rgb(${r},${g},${b})`,
    faint: known.faint,
    font: get("--jp-ui-font-family", "sans-serif"),
  };
}

// [[position, text], …] between lo and hi: an axis' own names, powers of ten, or steps of 1, 2, 5.
function ticks(axis, [lo, hi], pixels) {
  if (axis.names) {
    const shown = ([v]) => v >= Math.min(lo, hi) && v <= Math.max(lo, hi);
    return axis.names.map((name, i) => [i, name]).filter(shown);
  }
  const out = [];
  if (axis.log) {
    for (let e = Math.ceil(Math.log10(lo) - 1e-9); e <= Math.log10(hi) + 1e-9; e++) {
      out.push([10 ** e, e >= -3 && e <= 4 ? String(+(10 ** e).toPrecision(3)) : "1e" + e]);
    }
    if (out.length > 1) return out;
    out.length = 0; // a narrow range: as on a linear axis
  }
  const raw = (hi - lo) / Math.max(2, pixels / 60);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((s) => s * power >= raw);
  for (let i = Math.ceil(lo / step - 1e-9); i <= hi / step + 1e-9; i++) {
    out.push([i * step, String(+(i * step).toPrecision(6))]);
  }
  return out;
}

// From values of an axis to pixels; `back` leads from pixels to values.
function scaler(axis, range, from, to) {
  const forward = axis.log ? (v) => Math.log10(Math.max(v, 1e-30)) : (v) => v;
  const low = forward(range[0]);
  const k = (to - from) / (forward(range[1]) - low);
  const scale = (v) => from + k * (forward(v) - low);
  scale.back = (p) => (axis.log ? 10 ** ((p - from) / k + low) : (p - from) / k + low);
  scale.low = range[0];
  return scale;
}

// Text at (x, y); what follows an underscore is a subscript: "p_T [GeV]".
function write(ctx, s, x, y, align = "left") {
  const font = ctx.font;
  const resize = (k) => (ctx.font = font.replace(/([\d.]+)px/, (_, v) => v * k + "px"));
  const parts = s.split(/(_\w+)/).map((t) => (t[0] === "_" ? [t.slice(1), 3, 0.75] : [t, 0, 1]));
  const width = parts.reduce((sum, [t, , k]) => (resize(k), sum + ctx.measureText(t).width), 0);
  ctx.textAlign = "left";
  x -= align === "center" ? width / 2 : align === "right" ? width : 0;
  for (const [t, down, k] of parts) {
    resize(k);
    ctx.fillText(t, x, y + down);
    x += ctx.measureText(t).width;
  }
  ctx.font = font;
}

function segment(ctx, x0, y0, x1, y1) {
  ctx.beginPath();
  ctx.moveTo(x0, y0);
  ctx.lineTo(x1, y1);
  ctx.stroke();
}

function fillOrStroke(ctx, fill) {
  ctx.globalAlpha = fill || 1;
  if (fill) ctx.fill();
  else ctx.stroke();
  ctx.globalAlpha = 1;
}

// Arrays come from Python as float32 bytes, or as lists.
function numbers(a) {
  if (!(a instanceof DataView)) return a ?? [];
  return new Float32Array(a.buffer.slice(a.byteOffset, a.byteOffset + a.byteLength));
}

// Each draws a layer and returns its marks for the pointer: [x, y, radius, left end of a bar].
const painters = {
  circles(ctx, l, X, Y) {
    ctx.lineWidth = l.colors ? 2 : 1.4;
    l.x.forEach((x, i) => {
      if (l.colors) ctx.fillStyle = ctx.strokeStyle = l.colors[l.c[i]];
      ctx.beginPath();
      ctx.arc(X(x), Y(l.y[i]), Math.max(l.r[i], 0.8), 0, TAU);
      fillOrStroke(ctx, l.fill);
    });
    return Array.from(l.x, (x, i) => [X(x), Y(l.y[i]), l.r[i]]);
  },

  points(ctx, l, X, Y) {
    const s = l.size;
    return Array.from(l.x, (value, i) => {
      if (l.colors) ctx.fillStyle = l.colors[l.c[i]];
      const [x, y] = [X(value), Y(l.y[i])];
      if (l.x.length > 2000) {
        ctx.fillRect(x - s, y - s, 2 * s, 2 * s); // faster
      } else {
        ctx.beginPath();
        ctx.arc(x, y, s, 0, TAU);
        ctx.fill();
      }
      return [x, y, s];
    });
  },

  bars(ctx, l, X, Y) {
    const height = 0.7 * Math.abs(Y(1) - Y(0));
    const left = X(X.low);
    return Array.from(l.value, (v, i) => {
      if (l.colors) ctx.fillStyle = l.colors[l.c[i]];
      ctx.fillRect(left, Y(i) - height / 2, X(v) - left, height);
      return [X(v), Y(i), height / 2, left];
    });
  },

  steps(ctx, l, X, Y) {
    const floor = Y(Y.low);
    ctx.lineWidth = 1.8;
    ctx.setLineDash(l.dash ? [5, 4] : []);
    ctx.beginPath();
    ctx.moveTo(X(l.edges[0]), floor);
    l.values.forEach((v, i) => {
      ctx.lineTo(X(l.edges[i]), Y(v));
      ctx.lineTo(X(l.edges[i + 1]), Y(v));
    });
    ctx.lineTo(X(l.edges[l.edges.length - 1]), floor);
    fillOrStroke(ctx, l.fill);
    ctx.setLineDash([]);
    return [];
  },

  line(ctx, l, X, Y) {
    ctx.lineWidth = 1.8;
    ctx.setLineDash(l.dash ? [5, 4] : []);
    ctx.beginPath();
    l.x.forEach((x, i) => ctx.lineTo(X(x), Y(l.y[i])));
    ctx.stroke();
    ctx.setLineDash([]);
    l.error.forEach((e, i) => segment(ctx, X(l.x[i]), Y(l.y[i] - e), X(l.x[i]), Y(l.y[i] + e)));
    return [];
  },
};

// Texts beside marks, those left out that would lie on an earlier one.
function writeBeside(ctx, texts, marks, look) {
  const written = [];
  Object.assign(ctx, { fillStyle: look.text, strokeStyle: look.page, lineWidth: 3 });
  marks.forEach(([x, y, r], i) => {
    const at = [x + r + 3, y + 4];
    const hides = ([u, v]) => Math.abs(at[0] - u) < 34 && Math.abs(at[1] - v) < 12;
    if (!texts[i] || written.some(hides)) return;
    written.push(at);
    ctx.strokeText(texts[i], ...at); // so that it can be read on other marks
    ctx.fillText(texts[i], ...at);
  });
}

function drawAxes(ctx, p, { X, Y, box, xr, yr }) {
  const [w, h] = p.size;
  for (const [v, s] of ticks(p.x, xr, box.r - box.l)) {
    segment(ctx, X(v), box.b, X(v), box.b + 4);
    write(ctx, s, Math.min(X(v), w - ctx.measureText(s).width / 2 - 1), box.b + 16, "center");
  }
  for (const [v, s] of ticks(p.y, yr, 1.4 * (box.b - box.t))) {
    segment(ctx, box.l - 4, Y(v), box.l, Y(v));
    write(ctx, s, box.l - 7, Y(v) + 4, "right");
  }
  write(ctx, p.x.label, (box.l + box.r) / 2, h - 8, "center");
  ctx.save();
  ctx.translate(13, (box.t + box.b) / 2);
  ctx.rotate(-Math.PI / 2);
  write(ctx, p.y.label, 0, 0, "center");
  ctx.restore();
}

function drawColourScale(ctx, bar, box, look) {
  const width = 150;
  const left = box.r - width;
  const part = width / bar.colors.length;
  bar.colors.forEach((c, i) => {
    ctx.fillStyle = look.color(c);
    ctx.fillRect(left + part * i, 26, part + 1, 7);
  });
  ctx.fillStyle = look.text;
  write(ctx, bar.low, left, 43);
  write(ctx, bar.high, box.r, 43, "right");
  write(ctx, bar.label, left - 8, 34, "right");
}

// On the line of the title if it fits, else below it.
function drawLegend(ctx, layers, box, titleWidth, look) {
  const named = layers.filter((l) => l.name).reverse();
  const width = (l) => 28 + ctx.measureText(l.name).width;
  const total = named.reduce((sum, l) => sum + width(l), titleWidth);
  const beside = total < box.r - box.l;
  const y = beside ? 16 : box.t + 16;
  let x = beside ? box.r : box.r - 6;
  for (const l of named) {
    ctx.fillStyle = look.text;
    write(ctx, l.name, x - 16, y, "right");
    ctx.fillStyle = ctx.strokeStyle = look.color(l.color);
    ctx.lineWidth = 1.8;
    ctx.beginPath();
    if (l.mark === "line") {
      ctx.setLineDash(l.dash ? [5, 3] : []);
      ctx.moveTo(x - 13, y - 4);
      ctx.lineTo(x, y - 4);
    } else if (l.mark === "circles" || l.mark === "points") ctx.arc(x - 6, y - 4, 5, 0, TAU);
    else ctx.rect(x - 12, y - 8, 11, 8);
    fillOrStroke(ctx, l.fill || (l.mark === "points" || l.mark === "bars" ? 1 : 0));
    ctx.setLineDash([]);
    x -= width(l);
  }
}

// The whole panel; returns its scales and the marks that can be pointed at.
function draw(ctx, p, zoom, look) {
  const [w, h] = p.size;
  const [xr, yr] = [zoom?.x ?? p.x.range, zoom?.y ?? p.y.range];
  const letters = Math.max(0, ...ticks(p.y, yr, 1.4 * h).map((t) => t[1].length));
  const left = (p.y.label ? 34 : letters ? 20 : 12) + 6.6 * letters;
  const box = { l: left, r: w - 12, t: p.bar ? 46 : 26, b: h - (p.x.label ? 40 : 12) };
  const frame = [box.l, box.t, box.r - box.l, box.b - box.t];
  const X = scaler(p.x, xr, box.l, box.r);
  const Y = scaler(p.y, yr, box.b, box.t);
  ctx.clearRect(0, 0, w, h);
  ctx.font = `12px ${look.font}`;
  ctx.textBaseline = "alphabetic";
  ctx.lineWidth = 1;
  ctx.strokeStyle = look.faint;
  ctx.fillStyle = look.text;
  ctx.strokeRect(...frame);
  drawAxes(ctx, p, { X, Y, box, xr, yr });
  ctx.font = `600 12px ${look.font}`;
  const room = (w - box.l) / ctx.measureText(p.title).width;
  if (room < 1) ctx.font = `600 ${Math.max(9, 12 * room)}px ${look.font}`; // of a thumbnail
  write(ctx, p.title, box.l, 16);
  const titleWidth = ctx.measureText(p.title).width;
  ctx.font = `11px ${look.font}`;
  if (p.bar) drawColourScale(ctx, p.bar, box, look);
  ctx.save();
  ctx.beginPath();
  ctx.rect(...frame);
  ctx.clip();
  const marks = [];
  for (const layer of p.layers) {
    const l = { ...layer, colors: layer.colors?.map(look.color) };
    for (const k of ["x", "y", "r", "c", "value", "values", "edges", "error", "ids"]) {
      l[k] = numbers(l[k]);
    }
    ctx.fillStyle = ctx.strokeStyle = l.color ? look.color(l.color) : look.text;
    const at = painters[l.mark](ctx, l, X, Y);
    if (l.text) writeBeside(ctx, l.text, at, look);
    const before = marks.length;
    if (!l.ids.length) continue;
    marks.push(...at.map(([x, y, r, from], i) => ({ id: l.ids[i], i: before + i, x, y, r, from })));
  }
  ctx.restore();
  drawLegend(ctx, p.layers, box, titleWidth, look);
  return { X, Y, box, marks, frame };
}

// Whether a point lies inside a closed path: how often does a line from it cross the path?
function inside({ x, y }, path) {
  let odd = false;
  path.forEach(([x1, y1], i) => {
    const [x0, y0] = path.at(i - 1);
    if (y1 > y !== y0 > y && x < ((x0 - x1) * (y - y1)) / (y0 - y1) + x1) odd = !odd;
  });
  return odd;
}

// The mark under the pointer, or one no more than 12 pixels from it.
function nearest([x, y], marks) {
  let best = null;
  let least = 12;
  for (const m of marks) {
    const onBar = Math.abs(y - m.y) < m.r / 0.7 && x > 0;
    const away = Math.hypot(x - m.x, y - m.y) - (m.r > 4 ? m.r : 0);
    const d = m.from === undefined ? Math.max(away, 0) + m.r * 1e-3 : onBar ? 0 : 99;
    if (d < least) [least, best] = [d, m];
  }
  return best;
}

// The next mark from one, in the direction of an arrow key: near, and not far to the side.
function towards(key, from, marks) {
  const [dx, dy] = { Left: [-1, 0], Right: [1, 0], Up: [0, -1], Down: [0, 1] }[key.slice(5)];
  let best = null;
  let least = Infinity;
  for (const m of marks) {
    const [u, v] = [m.from === undefined ? m.x - from.x : 0, m.y - from.y];
    const [along, aside] = [u * dx + v * dy, Math.abs(u * dy) + Math.abs(v * dx)];
    if (along > 0.5 && aside < 2 * along && along + 2 * aside < least) {
      [least, best] = [along + 2 * aside, m];
    }
  }
  return best;
}

// A panel in words, for those who do not see it.
function describe(p) {
  const layers = p.layers.map((l) => {
    const n = numbers(l.x ?? l.value ?? l.values).length;
    return l.mark === "steps" ? l.name : `${n} ${l.name ?? l.mark}`;
  });
  const axes = [p.y.label, p.x.label].filter(Boolean).join(" against ");
  return [p.title, axes, ...layers].filter(Boolean).join(", ").replaceAll("_", " ");
}

// ipywidgets writes a slider's description beside it, and does not tell a screen reader; of a
// progress bar it says nothing at all.
function nameControls(el) {
  const page = el.closest(".jp-OutputArea-output") ?? document;
  for (const slider of page.querySelectorAll(".widget-inline-hbox:has(> .widget-label)")) {
    for (const handle of slider.querySelectorAll("[role=slider], .widget-readout")) {
      handle.setAttribute("aria-label", slider.querySelector(".widget-label").textContent);
    }
  }
  for (const progress of page.querySelectorAll(".widget-hprogress .progress:not([role])")) {
    const bar = progress.firstElementChild;
    const tell = () => progress.setAttribute("aria-valuenow", parseInt(bar.style.width) || 0);
    progress.setAttribute("role", "progressbar");
    progress.setAttribute("aria-label", "per cent done");
    new MutationObserver(tell).observe(bar, { attributeFilter: ["style"] });
    tell();
  }
}

function save(name, bytes) {
  const a = document.createElement("a");
  a.href = URL.createObjectURL(new Blob([bytes]));
  a.download = name;
  a.click();
  setTimeout(() => URL.revokeObjectURL(a.href), 1000);
}

// What is pointed at or chosen in a canvas is so in the one that it follows, and the other way.
async function follow(model) {
  const leader = await model.widget_manager.get_model(model.get("leader"));
  for (const name of ["hover", "selected"]) {
    const taken = () => model.set(name, leader.get(name));
    const given = () => {
      leader.set(name, model.get(name));
      leader.save_changes();
    };
    taken();
    leader.on(`change:${name}`, taken);
    model.on(`change:${name}`, given);
  }
}

function initialize({ model }) {
  if (model.get("leader")) follow(model);
  model.on("change:leader", () => follow(model));
}

// Two canvases: the panel, and above it the rings around what is pointed at or selected, so that
// nothing else is drawn again when the mouse moves.
function render({ model, el }) {
  el.classList.add("omnijet-canvas");
  el.tabIndex = 0;
  el.setAttribute("data-lm-suppress-shortcuts", "true"); // JupyterLab leaves its keys to us
  const [base, top, tip, spoken] = ["canvas", "canvas", "div", "div"].map((tag) =>
    el.appendChild(document.createElement(tag)),
  );
  el.setAttribute("role", "application"); // a screen reader leaves the keys to us, too
  base.setAttribute("role", "img");
  tip.className = "omnijet-tip";
  tip.hidden = true;
  spoken.className = "omnijet-spoken";
  spoken.setAttribute("role", "status");
  let look = null; // styles are known once it is in the page
  let view = null; // what `draw` returned
  let zoom = null;
  let path = null; // of the lasso
  let ranges = "";

  const whole = () => model.get("panel").id ?? null; // of a picture that is one mark

  // A context whose unit is a CSS pixel.
  function context(canvas) {
    const k = window.devicePixelRatio || 1;
    const [w, h] = model.get("panel").size;
    if (canvas.width !== w * k || canvas.height !== h * k) {
      canvas.width = w * k;
      canvas.height = h * k;
      canvas.style.width = w + "px";
      canvas.style.height = h + "px";
    }
    const ctx = canvas.getContext("2d");
    ctx.setTransform(k, 0, 0, k, 0, 0);
    return ctx;
  }

  function repaint() {
    const p = model.get("panel");
    if (!p?.size) return;
    const now = JSON.stringify([p.x.range, p.y.range]);
    if (now !== ranges) zoom = null;
    ranges = now;
    el.style.width = p.size[0] + "px";
    el.style.height = p.size[1] + "px";
    if (!look) return;
    base.setAttribute("aria-label", p.title);
    el.setAttribute("aria-label", describe(p));
    view = draw(context(base), p, zoom, look);
    el.setAttribute("aria-description", keys());
    rings();
    tip.hidden = true; // what it said may be gone
  }

  // What the keys do here, for a screen reader.
  function keys() {
    const some = view.marks.length || whole() !== null;
    const marks = some ? ["Enter: choose", "Space: choose also or no more"] : [];
    const arrows = model.get("turns") ? "arrow keys: the next or the one before" : "";
    const walks = `${arrows && "Shift and "}arrow keys: to the next mark`;
    const both = [arrows, view.marks.length ? walks : ""];
    return [...both, ...marks, "plus, minus, 0: zoom"].filter(Boolean).join("; ");
  }

  function say(text) {
    spoken.textContent = text.replaceAll("_", " ");
  }

  function restyle() {
    look = el.isConnected ? theme(el) : null;
    repaint();
  }

  function rings() {
    if (!view) return;
    const ctx = context(top);
    const chosen = new Set(model.get("selected"));
    const hover = model.get("hover");
    ctx.clearRect(0, 0, top.width, top.height);
    ctx.strokeStyle = look.text;
    if (whole() === hover || chosen.has(whole())) {
      ctx.lineWidth = chosen.has(whole()) ? 3 : 1.5;
      ctx.strokeRect(...view.frame); // the whole picture is one mark
    }
    for (const m of view.marks) {
      if (m.id !== hover && !chosen.has(m.id)) continue;
      ctx.lineWidth = m.id === hover ? 2 : 1.6;
      ctx.beginPath();
      if (m.from === undefined) ctx.arc(m.x, m.y, Math.max(m.r, 3) + 2.5, 0, TAU);
      else ctx.rect(m.from, m.y - m.r, Math.max(m.x - m.from, 2), 2 * m.r);
      ctx.stroke();
    }
    if (path) {
      ctx.lineWidth = 1;
      ctx.beginPath();
      path.forEach((q) => ctx.lineTo(...q));
      ctx.stroke();
    }
  }

  function place(e) {
    const r = top.getBoundingClientRect();
    const [kx, ky] = [top.clientWidth / r.width, top.clientHeight / r.height];
    return [(e.clientX - r.left) * kx, (e.clientY - r.top) * ky];
  }

  // Python learns of the pointer from the canvas that the others follow: one message a move.
  function tell(name, value) {
    model.set(name, value);
    if (name === "selected" || !model.get("leader")) model.save_changes();
  }

  // Point at a mark, or at none; `aloud` for those who came by a key.
  function point(m, at, aloud) {
    const { tips } = model.get("panel");
    const id = m ? m.id : -1;
    if (model.get("hover") !== id) tell("hover", id);
    tip.hidden = !(m && tips);
    if (tip.hidden) return;
    tip.textContent = (typeof tips === "string" ? `${tips} ${m.id}` : tips[m.i]).replace("_", "");
    tip.style.left = at[0] + 12 + "px";
    tip.style.top = at[1] + 12 + "px";
    if (aloud) say(tip.textContent);
  }

  // Choose a mark alone; or `also`, and no longer if it is chosen already.
  function choose(m, also) {
    const before = model.get("selected");
    const others = before.filter((id) => id !== m.id);
    tell("selected", also ? (others.length < before.length ? others : [...before, m.id]) : [m.id]);
    if (also) say(`${model.get("selected").length} chosen`);
    else model.send({ click: m.id });
  }

  // The mark at a position; in a picture that is one mark, that one.
  function markAt(at) {
    return whole() === null ? nearest(at, view?.marks ?? []) : { id: whole() };
  }

  top.onpointermove = (e) => {
    const at = place(e);
    if (path) {
      path.push(at);
      return rings();
    }
    const m = markAt(at);
    point(m, at);
    top.style.cursor = m ? "pointer" : "default";
  };

  top.onpointerleave = () => {
    if (!path) point(null);
  };

  top.onpointerdown = (e) => {
    el.focus({ preventScroll: true });
    if (!model.get("panel").lasso) return;
    path = [place(e)];
    top.setPointerCapture(e.pointerId);
  };

  top.onpointerup = (e) => {
    const drawn = path ?? [];
    const also = e.shiftKey || e.ctrlKey || e.metaKey;
    path = null;
    const m = markAt(place(e));
    if (drawn.some(([x, y]) => Math.hypot(x - drawn[0][0], y - drawn[0][1]) > 6)) {
      const caught = view.marks.filter((mark) => inside(mark, drawn)).map(({ id }) => id);
      tell("selected", [...new Set([...(also ? model.get("selected") : []), ...caught])]);
    } else if (m) choose(m, also);
    rings();
  };

  function zoomAt([x, y], k) {
    const { X, Y, box } = view;
    const span = (S, at, ends) => ends.map((end) => S.back(at + (end - at) * k));
    zoom = { x: span(X, x, [box.l, box.r]), y: span(Y, y, [box.b, box.t]) };
    repaint();
  }

  function zoomBy(k) {
    const { l, r, t, b } = view.box;
    zoomAt([(l + r) / 2, (t + b) / 2], k);
  }

  function zoomOut() {
    zoom = null;
    repaint();
  }

  top.onwheel = (e) => {
    if (!e.shiftKey || !view) return;
    e.preventDefault();
    zoomAt(place(e), (e.deltaY || e.deltaX) < 0 ? 0.8 : 1.25);
  };

  top.ondblclick = zoomOut;

  // The mark that the keys are at; `null` where there is none yet.
  function here() {
    if (whole() !== null) return { id: whole() };
    return view.marks.find((m) => m.id === model.get("hover")) ?? null;
  }

  function walk(key) {
    const { marks } = view;
    const start = marks.find((m) => m.id === model.get("selected")[0]) ?? marks[0];
    const next = here() && key.startsWith("Arrow") ? towards(key, here(), marks) : start;
    const m = { Home: marks[0], End: marks.at(-1) }[key] ?? next;
    if (m) point(m, [m.x, m.y], true);
  }

  el.onkeydown = (e) => {
    if (!view || e.ctrlKey || e.metaKey || e.altKey) return;
    const zooms = { "+": 0.8, "=": 0.8, "-": 1.25 };
    const at = here();
    if (e.key.startsWith("Arrow") && model.get("turns") && !e.shiftKey) model.send({ key: e.key });
    else if (e.key.startsWith("Arrow") || e.key === "Home" || e.key === "End") walk(e.key);
    else if (e.key === "Enter" && at) choose(at, false);
    else if (e.key === " " && at) choose(at, true);
    else if (e.key === "Escape" && model.get("hover") >= 0) point(null);
    else if (e.key === "Escape") tell("selected", []);
    else if (e.key in zooms) zoomBy(zooms[e.key]);
    else if (e.key === "0") zoomOut();
    else return;
    e.preventDefault();
    e.stopPropagation();
  };

  el.onfocus = () => {
    if (whole() !== null && el.matches(":focus-visible")) point({ id: whole() });
  };

  el.onblur = () => point(null);

  const listeners = {
    "change:panel": () => {
      repaint();
      if (document.activeElement === el) say(model.get("panel").title);
    },
    "change:hover": rings,
    "change:selected": rings,
    "msg:custom": (message, buffers) => {
      if (message.focus) el.focus({ preventScroll: true });
      if (message.download) save(message.download, buffers[0]);
      if (message.say) say(message.say);
      // refused where a page may not, and then it can still be taken from below the picture
      if (message.copy) window.navigator.clipboard?.writeText(message.copy).catch(() => {});
    },
  };
  for (const [name, f] of Object.entries(listeners)) model.on(name, f);
  const themed = new MutationObserver(() => requestAnimationFrame(restyle));
  const attributeFilter = ["data-jp-theme-light", "data-jp-theme-name", "class"];
  themed.observe(document.body, { attributes: true, attributeFilter });
  const shown = new ResizeObserver(() => {
    if (!look) restyle();
    nameControls(el);
    setTimeout(nameControls, 1000, el); // some come later than the picture
  });
  shown.observe(el);
  repaint();
  return () => {
    themed.disconnect();
    shown.disconnect();
    for (const [name, f] of Object.entries(listeners)) model.off(name, f);
  };
}

export default { initialize, render };
