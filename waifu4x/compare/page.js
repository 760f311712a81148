
"use strict";
(() => {
  const pictures = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
  const slider = get("slider"), sides = get("sides"), divider = get("divider");
  const MOST = 64;

  // What is looked at. zoom: pixels of the screen for one pixel of the results; x, y: the place in
  // the results that lies in the middle of every pane; split: where the divider is, 0 to 1.
  const state = { picture: 0, a: 0, b: 0, mode: "slider", zoom: 1, x: 0, y: 0, split: 0.5 };
  let views = [], panes = [], dpr = 1, fitted = true;

  // ---------------------------------------------------------------------------------- drawing

  const here = () => pictures[state.picture];
  const inView = () => (state.mode === "slider" ? [slider] : panes);

  const sized = (pane) => {
    const canvas = pane.querySelector("canvas");
    const width = Math.max(1, Math.round(pane.clientWidth * dpr));
    const height = Math.max(1, Math.round(pane.clientHeight * dpr));
    if (canvas.width !== width || canvas.height !== height) {
      canvas.width = width;
      canvas.height = height;
    }
    return canvas;
  };

  const paint = (context, view) => {
    const { width, height } = context.canvas;
    const left = Math.round(width / 2 - state.x * state.zoom);
    const top = Math.round(height / 2 - state.y * state.zoom);
    // Enlarged pixels stay pixels; only what is shrunk to fit is averaged.
    context.imageSmoothingEnabled = state.zoom * here().width < view.image.naturalWidth;
    context.imageSmoothingQuality = "high";
    const wide = here().width * state.zoom, tall = here().height * state.zoom;
    context.drawImage(view.image, left, top, Math.round(wide), Math.round(tall));
  };

  const draw = () => {
    if (!views.length) return; // sizes are told before the pictures are decoded
    dpr = window.devicePixelRatio || 1;
    if (fitted) fit();
    if (state.mode === "slider") {
      const context = sized(slider).getContext("2d");
      const { width, height } = context.canvas;
      const at = Math.round(width * state.split);
      context.clearRect(0, 0, width, height);
      for (const [view, from, to] of [[views[state.a], 0, at], [views[state.b], at, width]]) {
        context.save();
        context.beginPath();
        context.rect(from, 0, to - from, height);
        context.clip();
        paint(context, view);
        context.restore();
      }
      divider.style.left = state.split * 100 + "%";
      const percent = Math.round(state.split * 100);
      divider.setAttribute("aria-valuenow", percent);
      divider.setAttribute("aria-valuetext", percent + " % " + views[state.a].name);
    } else {
      panes.forEach((pane, number) => {
        const context = sized(pane).getContext("2d");
        context.clearRect(0, 0, context.canvas.width, context.canvas.height);
        paint(context, views[number]);
      });
    }
    const percent = state.zoom * 100;
    get("zoom").textContent = (percent < 10 ? percent.toFixed(1) : Math.round(percent)) + "\u00a0%";
  };

  let asked = false;
  const redraw = () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  };

  // ------------------------------------------------------------------------------ zoom and pan

  const fit = () => {
    const pane = inView()[0];
    const { width, height } = here();
    const room = Math.min(pane.clientWidth * dpr / width, pane.clientHeight * dpr / height);
    // Whole factors keep all pixels of one size.
    state.zoom = clamp(room >= 1 ? Math.floor(room) : room, 1e-3, MOST);
    state.x = width / 2;
    state.y = height / 2;
    fitted = true;
  };

  const move = (dx, dy) => {
    state.x = clamp(state.x + dx / state.zoom, 0, here().width);
    state.y = clamp(state.y + dy / state.zoom, 0, here().height);
    fitted = false;
    redraw();
  };

  // Keeps the place below (px, py), in pixels of the screen from the pane's middle, where it is.
  const zoomTo = (zoom, px = 0, py = 0) => {
    const { width, height } = here();
    const least = Math.min(1, dpr * 120 / Math.max(width, height));
    const wanted = clamp(zoom, least, MOST);
    const shift = 1 / state.zoom - 1 / wanted;
    state.zoom = wanted;
    fitted = false;
    move(px * shift * wanted, py * shift * wanted);
  };

  const STEPS = [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];
  const zoomBy = (direction, px, py) => {
    const next = direction > 0
      ? STEPS.find((step) => step > state.zoom * 1.001)
      : STEPS.findLast((step) => step < state.zoom * 0.999);
    if (next !== undefined) zoomTo(next, px, py);
  };

  const fromMiddle = (pane, event) => {
    const box = pane.getBoundingClientRect();
    return [
      (event.clientX - box.left - box.width / 2) * dpr,
      (event.clientY - box.top - box.height / 2) * dpr,
    ];
  };

  const splitAt = (event) => {
    const box = slider.getBoundingClientRect();
    state.split = clamp((event.clientX - box.left) / box.width, 0, 1);
    redraw();
  };

  const listen = (pane) => {
    const fingers = new Map();
    let sliding = false, gathered = 0;
    pane.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      pane.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      sliding = fingers.size === 1 && divider.contains(event.target);
      pane.classList.toggle("moving", !sliding);
    });
    pane.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const now = [event.clientX, event.clientY];
      if (sliding) {
        splitAt(event);
      } else if (fingers.size === 1) {
        move((before[0] - now[0]) * dpr, (before[1] - now[1]) * dpr);
      } else if (fingers.size === 2) {
        const [other] = [...fingers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
        const length = (at) => Math.max(1, Math.hypot(at[0] - other[0], at[1] - other[1]));
        const middle = { clientX: (now[0] + other[0]) / 2, clientY: (now[1] + other[1]) / 2 };
        zoomTo(state.zoom * length(now) / length(before), ...fromMiddle(pane, middle));
        move((before[0] - now[0]) * dpr / 2, (before[1] - now[1]) * dpr / 2);
      }
      fingers.set(event.pointerId, now);
    });
    const leave = (event) => {
      fingers.delete(event.pointerId);
      if (!fingers.size) pane.classList.remove("moving");
      sliding = false;
    };
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) {
      pane.addEventListener(end, leave);
    }
    pane.addEventListener("wheel", (event) => {
      event.preventDefault();
      // Fine steps of a touch pad add up to one of a wheel.
      gathered += event.deltaMode ? event.deltaY * 40 : event.deltaY;
      if (Math.abs(gathered) < 40) return;
      zoomBy(-Math.sign(gathered), ...fromMiddle(pane, event));
      gathered = 0;
    }, { passive: false });
    pane.addEventListener("dblclick", (event) => {
      if (!divider.contains(event.target)) zoomBy(1, ...fromMiddle(pane, event));
    });
  };

  // ------------------------------------------------------------------------------- what is shown

  const choose = (side, number) => {
    if (number < 0 || number >= views.length) return;
    state[side] = number;
    get(side).value = number;
    get("tag-" + side).textContent = views[number].name;
    redraw();
  };

  const swap = () => {
    const { a, b } = state;
    choose("a", b);
    choose("b", a);
  };

  const show = (mode) => {
    state.mode = mode;
    slider.hidden = mode !== "slider";
    sides.hidden = mode === "slider";
    get("as-slider").setAttribute("aria-pressed", mode === "slider");
    get("as-sides").setAttribute("aria-pressed", mode !== "slider");
    draw();
  };

  const pane = (view, number) => {
    const figure = document.createElement("figure");
    const stage = document.createElement("div");
    stage.className = "stage";
    stage.style.aspectRatio = here().width + " / " + here().height;
    stage.append(document.createElement("canvas"));
    stage.setAttribute("role", "img");
    stage.setAttribute("aria-label", view.name);
    const caption = document.createElement("figcaption");
    const name = document.createElement("b");
    name.textContent = number + 1 + " · " + view.name;
    const figures = document.createElement("div");
    figures.className = "figures";
    figures.textContent = view.figures;
    caption.append(name, figures);
    figure.append(stage, caption);
    sides.append(figure);
    listen(stage);
    return stage;
  };

  const open = async (number) => {
    const kept = views.length ? [views[state.a].name, views[state.b].name] : null;
    state.picture = number;
    slider.setAttribute("aria-busy", "true");
    const chosen = here().views.map((view) => ({ ...view, image: get(view.id) }));
    await Promise.all(chosen.map((view) => view.image.decode()));
    if (state.picture !== number) return;
    views = chosen;
    for (const side of ["a", "b"]) {
      const options = views.map((view, place) => new Option(place + 1 + " · " + view.name, place));
      get(side).replaceChildren(...options);
    }
    sides.replaceChildren();
    panes = views.map(pane);
    document.querySelectorAll(".plain").forEach((section, place) => {
      section.hidden = place !== number;
    });
    get("picture").value = number;
    get("measured").textContent = here().measured;
    const find = (name, other) => {
      const place = views.findIndex((view) => view.name === name);
      return place < 0 ? other : place;
    };
    choose("a", find(kept && kept[0], here().first[0]));
    choose("b", find(kept && kept[1], here().first[1]));
    fitted = true;
    draw();
    slider.setAttribute("aria-busy", "false");
  };

  // ------------------------------------------------------------------------------------ controls

  const turn = (by) => {
    const next = state.picture + by;
    if (next >= 0 && next < pictures.length) open(next);
  };
  const flip = () => {
    state.split = state.split > 0 ? 0 : 1;
    redraw();
  };
  const refit = () => {
    fitted = true;
    redraw();
  };
  const keys = {
    x: swap, f: flip, s: () => show("slider"), g: () => show("sides"), e: () => zoomTo(1),
    0: refit, "+": () => zoomBy(1), "=": () => zoomBy(1), "-": () => zoomBy(-1),
    n: () => turn(1), p: () => turn(-1),
    "?": () => { get("help").open = !get("help").open; },
  };
  const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  const arrow = ([dx, dy], event) => {
    if (document.activeElement === divider) {
      state.split = clamp(state.split + (dx - dy) * (event.shiftKey ? 0.1 : 0.02), 0, 1);
      redraw();
    } else {
      const size = inView()[0];
      move(dx * size.clientWidth * dpr / 10, dy * size.clientHeight * dpr / 10);
    }
  };

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target instanceof HTMLSelectElement) return;
    const digit = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
    if (digit) choose(event.shiftKey ? "a" : "b", Number(digit[1]) - 1);
    else if (ARROWS[event.key]) arrow(ARROWS[event.key], event);
    else if (event.target === divider && (event.key === "Home" || event.key === "End")) {
      state.split = event.key === "Home" ? 0 : 1;
      redraw();
    } else if (keys[event.key.toLowerCase()]) keys[event.key.toLowerCase()]();
    else return;
    event.preventDefault();
  });

  const onClick = {
    swap, "as-slider": keys.s, "as-sides": keys.g, in: keys["+"], out: keys["-"], fit: refit,
    exact: keys.e,
  };
  for (const [id, act] of Object.entries(onClick)) get(id).addEventListener("click", act);
  for (const side of ["a", "b"]) {
    get(side).addEventListener("change", () => choose(side, Number(get(side).value)));
  }
  get("picture").append(...pictures.map((picture, place) => new Option(picture.name, place)));
  get("picture").addEventListener("change", () => open(Number(get("picture").value)));
  get("pictures").hidden = pictures.length < 2;

  document.documentElement.classList.add("live");
  get("viewer").hidden = false;
  listen(slider);
  new ResizeObserver(redraw).observe(slider);
  new ResizeObserver(redraw).observe(sides);
  open(0);
})();
