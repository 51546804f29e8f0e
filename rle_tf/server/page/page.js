// The page: a photograph and boxes to the server, its answer onto the photograph and in a table.

const $ = (id) => document.getElementById(id);
const canvas = $("picture"), video = $("video"), context = canvas.getContext("2d");
const COLOURS = { left: "255, 149, 0", right: "20, 120, 245", middle: "242, 242, 242" };
const CASING = "20, 20, 20";

let model = null; // model.json
let photo = null; // {bitmap, b64}: as displayed, turned by EXIF, which the server's boxes are too
let boxes = []; // [left, top, right, bottom] in pixels; none: the whole image
let answer = null; // the prediction for the photograph, and `boxes` that it is for
let person = 0, marked = null, drag = null, request = null;

// ---------------------------------------------------------------- photographs

async function show(blob) {
  let bitmap, b64;
  try {
    bitmap = await createImageBitmap(blob);
  } catch {
    fail("This file cannot be read as an image; the page takes what the browser can show.");
    return;
  }
  try {
    // The server reads JPEG and PNG. What else the browser shows, WebP say, is encoded anew.
    const fits = (size) => (size * 4) / 3 + 4096 < model.limits.body_bytes;
    if (!(await isJpegOrPng(blob)) || !fits(blob.size)) blob = await encode(bitmap);
    if (!fits(blob.size)) throw new Error("This photograph is larger than the server takes.");
    b64 = await base64(blob);
  } catch (error) {
    fail(error.message);
    return;
  }
  photo = { bitmap, b64 };
  [boxes, answer, person] = [[], null, 0];
  $("empty").hidden = true;
  canvas.hidden = $("legend").hidden = false;
  $("controls").disabled = false;
  fit();
  changed();
}

async function isJpegOrPng(blob) {
  const head = new Uint8Array(await blob.slice(0, 8).arrayBuffer());
  const begins = (...bytes) => bytes.every((byte, index) => head[index] === byte);
  return begins(0xff, 0xd8, 0xff) || begins(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a);
}

function encode(source, width = source.width, height = source.height) {
  const copy = Object.assign(document.createElement("canvas"), { width, height });
  copy.getContext("2d").drawImage(source, 0, 0);
  return new Promise((done, refuse) =>
    copy.toBlob(
      (blob) => (blob ? done(blob) : refuse(new Error("The browser cannot encode this image."))),
      "image/jpeg",
      0.95,
    ),
  );
}

function base64(blob) {
  return new Promise((done, refuse) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => refuse(new Error("This file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

// --------------------------------------------------------------------- camera

async function startCamera() {
  fail("");
  if (!navigator.mediaDevices) {
    fail("Browsers give the camera to pages of this machine (localhost) and to https only.");
    return;
  }
  try {
    const wanted = { video: { facingMode: "environment", width: { ideal: 1280 } } };
    video.srcObject = await navigator.mediaDevices.getUserMedia(wanted);
    await video.play();
    cameraShown(true);
    $("capture").focus();
  } catch (error) {
    stopCamera();
    const denied = error.name === "NotAllowedError";
    fail(denied ? "The camera was not allowed." : `There is no camera to be used: ${error.name}.`);
  }
}

async function capture() {
  const picture = await encode(video, video.videoWidth, video.videoHeight);
  stopCamera();
  await show(picture);
}

function stopCamera() {
  for (const track of video.srcObject?.getTracks() ?? []) track.stop();
  video.srcObject = null;
  cameraShown(false);
}

function cameraShown(on) {
  video.hidden = $("capture").hidden = $("stop").hidden = !on;
  $("camera").hidden = on;
  canvas.hidden = $("legend").hidden = on || !photo;
  $("empty").hidden = on || photo !== null;
}

// -------------------------------------------------------------------- request

// Asks for the pose of what is shown now; an older question is dropped.
async function changed() {
  request?.abort();
  const mine = (request = new AbortController());
  const asked = boxes.map((box) => [...box]);
  const { width, height } = photo.bitmap;
  const body = {
    signature_name: $("flip").checked ? "predict_image_flip_test" : "predict_image",
    instances: [
      {
        image_bytes: { b64: photo.b64 },
        boxes_xyxy: asked.length ? asked : [[0, 0, width, height]],
      },
    ],
  };
  listBoxes();
  fail("");
  $("state").textContent = "Looking …";
  const start = performance.now();
  try {
    const path = `v1/models/${encodeURIComponent(model.name)}:predict`;
    const response = await fetch(path, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: mine.signal,
    });
    const text = await response.text();
    if (!response.ok) throw new Error(sentence(text));
    // TensorFlow Serving's JSON has bare NaN and Infinity; here they are null, not known.
    const known = JSON.parse(text.replace(/-?\bInfinity\b|\bNaN\b/g, "null"));
    answer = { ...known.predictions[0], boxes: asked };
    person = Math.min(person, answer.person_score.length - 1);
    const people = answer.person_score.length;
    const time = Math.round(performance.now() - start);
    $("state").textContent = `${people} ${people === 1 ? "person" : "people"}, ${time} ms.`;
  } catch (error) {
    if (mine.signal.aborted) return;
    answer = null;
    const away = error instanceof TypeError; // what fetch throws
    fail(away ? "The server does not answer. Is it still running?" : error.message);
    $("state").textContent = "No pose.";
  }
  draw();
  tabulate();
}

function sentence(text) {
  try {
    const words = JSON.parse(text).error;
    return `The server says: ${words}${/[.!?]$/.test(words) ? "" : "."}`;
  } catch {
    return "The server failed at this request.";
  }
}

function fail(words) {
  $("error").textContent = words;
  $("error").hidden = !words;
}

// -------------------------------------------------------------------- drawing

const ratio = () => canvas.width / photo.bitmap.width; // of a canvas pixel to one of the photograph

function fit() {
  if (!photo || canvas.hidden) return;
  const { width, height } = photo.bitmap;
  const style = getComputedStyle($("stage"));
  const room = $("stage").clientWidth - parseFloat(style.paddingLeft) * 2;
  const scale = Math.min(room / width, (0.74 * innerHeight) / height);
  canvas.style.width = `${Math.round(width * scale)}px`;
  canvas.width = Math.max(1, Math.round(width * scale * devicePixelRatio));
  canvas.height = Math.max(1, Math.round(height * scale * devicePixelRatio));
  draw();
}

function draw() {
  const people = answer ? answer.person_score.length : 0;
  context.imageSmoothingQuality = "high";
  context.drawImage(photo.bitmap, 0, 0, canvas.width, canvas.height);
  boxes.forEach((box, index) => drawBox(box, String(index + 1), index === person ? 2.2 : 1.2));
  if (drag?.box) drawBox(drag.box, "", 1.2);
  for (let index = 0; index < people; index++) drawPerson(index);
  canvas.setAttribute(
    "aria-label",
    `Photograph of ${photo.bitmap.width} by ${photo.bitmap.height} pixels with ${people}` +
      ` ${people === 1 ? "person" : "people"} drawn; the table has the numbers.`,
  );
}

// A pixel's coordinate is that of its centre.
const place = ([x, y]) => [(x + 0.5) * ratio(), (y + 0.5) * ratio()];

function drawBox([left, top, right, bottom], name, thickness) {
  const [x, y] = place([left, top]), [x1, y1] = place([right, bottom]);
  const width = thickness * devicePixelRatio;
  stroke(`rgba(${CASING}, 0.45)`, 2.2 * width, () => context.rect(x, y, x1 - x, y1 - y));
  stroke(`rgba(${COLOURS.middle}, 0.95)`, width, () => context.rect(x, y, x1 - x, y1 - y));
  if (!name) return;
  context.font = `600 ${13 * devicePixelRatio}px system-ui, sans-serif`;
  const size = 18 * devicePixelRatio, tag = Math.max(context.measureText(name).width + 10, size);
  context.fillStyle = `rgba(${CASING}, 0.75)`;
  context.fillRect(x, y, tag, size);
  context.fillStyle = "white";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(name, x + tag / 2, y + size / 2 + devicePixelRatio / 2);
}

// As rle_tf.drawing does: ellipses of two and of one sigma, bones with a dark casing, joints.
function drawPerson(index) {
  const points = answer.keypoints_px[index], sigmas = answer.sigma_px[index];
  const [left, top, right, bottom] = answer.boxes[index] ?? [0, 0, photo.bitmap.width, photo.bitmap.height];
  const extent = ratio() * Math.hypot(right - left, bottom - top);
  const bounds = [1.6 * devicePixelRatio, 0.01 * Math.max(canvas.width, canvas.height)];
  const line = Math.max(bounds[0], Math.min(0.01 * extent, bounds[1]));
  const casing = Math.max(devicePixelRatio, 0.5 * line);
  const drawn = points.map((point) => point.every((value) => value !== null));
  const colour = (joint, alpha) => `rgba(${COLOURS[side(joint)]}, ${alpha})`;

  if ($("ellipses").checked) {
    for (const factor of [2, 1]) {
      points.forEach((point, joint) => {
        if (!drawn[joint] || !sigmas[joint].every((value) => value > 0)) return;
        const axes = sigmas[joint].map((value) => Math.max(factor * value * ratio(), 0.5));
        const path = () => context.ellipse(...place(point), ...axes, 0, 0, 2 * Math.PI);
        fill(colour(joint, factor === 2 ? 0.16 : 0.3), path);
        if (factor === 2) stroke(colour(joint, 0.75), Math.max(1, 0.5 * line), path);
      });
    }
  }
  const bones = model.bones.filter((bone) => bone.every((joint) => drawn[joint]));
  const path = ([start, end]) => () => {
    context.moveTo(...place(points[start]));
    context.lineTo(...place(points[end]));
  };
  for (const bone of bones) stroke(`rgba(${CASING}, 0.45)`, line + casing, path(bone));
  for (const bone of bones) {
    const sides = new Set(bone.map(side));
    sides.delete("middle");
    const [of] = sides.size === 1 ? sides : ["middle"];
    stroke(`rgb(${COLOURS[of]})`, line, path(bone));
  }
  points.forEach((point, joint) => {
    if (!drawn[joint]) return;
    const radius = line * (index === person && joint === marked ? 2.4 : 1);
    const dot = (size) => () => context.arc(...place(point), size, 0, 2 * Math.PI);
    fill(`rgba(${CASING}, 0.8)`, dot(radius + casing / 2));
    fill(colour(joint, 1), dot(radius));
  });
}

function side(joint) {
  const [prefix] = model.joints[joint].split("_");
  return prefix in COLOURS ? prefix : "middle";
}

function stroke(colour, width, path) {
  context.beginPath();
  path();
  Object.assign(context, { strokeStyle: colour, lineWidth: width, lineCap: "round" });
  context.stroke();
}

function fill(colour, path) {
  context.beginPath();
  path();
  context.fillStyle = colour;
  context.fill();
}

// ---------------------------------------------------------------------- boxes

function listBoxes() {
  $("hint").hidden = boxes.length > 0;
  $("whole").disabled = boxes.length === 0;
  $("add").disabled = boxes.length >= model.limits.boxes;
  // Left alone where only a number has changed: the keyboard is in one of the fields.
  if ($("boxes").children.length === boxes.length) return;
  const edges = ["left", "top", "right", "bottom"];
  const items = boxes.map((box, index) => {
    const fields = edges.map((edge, place) => {
      const input = element("input", { type: "number", step: "any", value: box[place] });
      input.id = `box-${index}-${edge}`;
      input.onchange = () => {
        box[place] = input.valueAsNumber || 0;
        changed();
      };
      return element("label", {}, edge, input);
    });
    const remove = element("button", { type: "button", ariaLabel: `Remove box ${index + 1}` }, "×");
    remove.onclick = () => {
      boxes.splice(index, 1);
      changed();
      $("add").focus();
    };
    return element("li", {}, element("span", {}, String(index + 1)), ...fields, remove);
  });
  $("boxes").replaceChildren(...items);
}

function addBox(box) {
  boxes.push(box.map((value) => Math.round(10 * value) / 10));
  person = boxes.length - 1;
  changed();
}

// The pixel under the pointer, within the photograph.
function pixel(event) {
  const area = canvas.getBoundingClientRect();
  const { width, height } = photo.bitmap;
  const within = (share, size) => Math.max(0, Math.min(share * size - 0.5, size - 1));
  return [
    within((event.clientX - area.left) / area.width, width),
    within((event.clientY - area.top) / area.height, height),
  ];
}

canvas.onpointerdown = (event) => {
  if (drag || event.button !== 0 || boxes.length >= model.limits.boxes) return;
  canvas.setPointerCapture(event.pointerId);
  drag = { pointer: event.pointerId, start: pixel(event), box: null };
};
canvas.onpointermove = (event) => {
  if (event.pointerId !== drag?.pointer) return;
  const [x, y] = pixel(event), [x0, y0] = drag.start;
  const box = [Math.min(x, x0), Math.min(y, y0), Math.max(x, x0), Math.max(y, y0)];
  const least = (6 * devicePixelRatio) / ratio(); // a tap is no box
  drag.box = box[2] - box[0] > least && box[3] - box[1] > least ? box : null;
  draw();
};
canvas.onpointerup = (event) => {
  if (event.pointerId !== drag?.pointer) return;
  const { box } = drag;
  drag = null;
  if (box) addBox(box);
};
canvas.onpointercancel = () => {
  drag = null;
  draw();
};

// ---------------------------------------------------------------------- table

function tabulate() {
  const people = answer ? answer.person_score.length : 0;
  $("result").hidden = people === 0;
  if (!people) return;
  $("people").hidden = people === 1;
  $("people").replaceChildren(
    ...Array.from({ length: people }, (_, index) => {
      const button = element("button", { type: "button" }, `Person ${index + 1}`);
      button.setAttribute("aria-pressed", String(index === person));
      button.onclick = () => {
        person = index;
        draw();
        tabulate();
        $("people").children[index].focus();
      };
      return button;
    }),
  );
  const score = element("strong", { id: "score" }, number(answer.person_score[person], 3));
  $("caption").replaceChildren("Person score ", score, "; joints in pixels of the photograph");
  const deep = "depth_mm" in answer;
  const heads = ["joint", "x", "y", "σ x", "σ y", ...(deep ? ["depth mm", "σ depth"] : [])];
  // Of a model that is not calibrated, what ranks its joints.
  const certain = answer.confidence ?? answer.score;
  const head = [...heads, answer.confidence ? "confidence" : "score"].map((name) => element("th", { scope: "col" }, name));
  const table = document.querySelector("table");
  table.tHead.replaceChildren(element("tr", {}, ...head));
  table.tBodies[0].replaceChildren(
    ...model.joints.map((name, joint) => {
      const [x, y] = answer.keypoints_px[person][joint];
      const [sigmaX, sigmaY] = answer.sigma_px[person][joint];
      const values = [number(x, 1), number(y, 1), number(sigmaX, 1), number(sigmaY, 1)];
      if (deep) {
        values.push(number(answer.depth_mm[person][joint], 0));
        values.push(number(answer.depth_sigma_mm[person][joint], 0));
      }
      const share = certain[person][joint];
      const confidence = element("td", { className: "confidence" }, number(share, 3));
      confidence.style.setProperty("--share", Math.max(0, Math.min(share ?? 0, 1)));
      const words = element("th", { scope: "row", className: side(joint) }, name.replace("_", " "));
      const cells = values.map((value) => element("td", {}, value));
      const row = element("tr", {}, words, ...cells, confidence);
      row.onmouseenter = () => mark(joint);
      row.onmouseleave = () => mark(null);
      return row;
    }),
  );
  const unknown = answer.sigma_px[person].every((pair) => pair.every((value) => value === null));
  $("note").textContent = unknown
    ? "It was trained without a flow, so its sigmas are not known in pixels."
    : "σ is the error to be expected; an ellipse shows one and two of them.";
}

function mark(joint) {
  marked = joint;
  draw();
}

const number = (value, digits) => (value === null ? "–" : value.toFixed(digits));

function element(tag, properties, ...content) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...content);
  return made;
}

// ---------------------------------------------------------------------- start

async function start() {
  model = await (await fetch("model.json")).json();
  const { name, version, image_size: size, dims } = model;
  document.title = `${name} · rle-tf`;
  $("name").textContent = name;
  const input = size ? `, crops of ${size[1]} × ${size[0]} pixels` : "";
  $("about").textContent =
    `version ${version} · ${model.skeleton}, ${model.joints.length} joints in ${dims}D${input}`;
  const path = `v1/models/${encodeURIComponent(name)}`;
  $("endpoint").textContent = `POST /${path}:predict`;
  $("status-link").href = path;
  $("metadata-link").href = `${path}/metadata`;
  if (model.input !== "image") {
    fail("This page needs a model that looks at images; this one lifts keypoints. REST serves it.");
    $("file").disabled = $("camera").disabled = true;
    $("file").parentElement.classList.add("disabled");
    return;
  }
  $("flip").disabled = !model.signatures.includes("predict_image_flip_test");

  $("file").onchange = () => {
    const [file] = $("file").files;
    if (file) show(file);
    $("file").value = ""; // the same file may be chosen again
  };
  const stage = $("stage");
  document.ondragover = (event) => event.preventDefault();
  document.ondrop = (event) => {
    event.preventDefault();
    stage.classList.remove("over");
    const [file] = event.dataTransfer.files;
    if (file) show(file);
  };
  document.ondragenter = () => stage.classList.add("over");
  document.ondragleave = (event) => event.relatedTarget ?? stage.classList.remove("over");
  $("camera").onclick = startCamera;
  $("capture").onclick = capture;
  $("stop").onclick = stopCamera;
  $("whole").onclick = () => {
    [boxes, person] = [[], 0];
    changed();
  };
  $("add").onclick = () => {
    const { width, height } = photo.bitmap;
    addBox([width / 4, height / 8, (3 * width) / 4, (7 * height) / 8]);
  };
  $("flip").onchange = changed;
  $("ellipses").onchange = draw;
  new ResizeObserver(fit).observe(stage);
}

start().catch(() => fail("The server does not say what it serves. Is it still running?"));
