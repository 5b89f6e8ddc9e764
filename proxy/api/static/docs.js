// Shows /openapi.json. All text goes in as text, never as markup.

const METHODS = ["get", "post", "patch", "delete"];

function made(name, text = "", className = "") {
  const element = document.createElement(name);
  element.textContent = text;
  if (className) element.className = className;
  return element;
}

function described(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(described).join(" or ");
  if (schema.enum) return schema.enum.map((each) => JSON.stringify(each)).join(", ");
  if ("const" in schema) return JSON.stringify(schema.const);
  const limits = [
    ["minLength", "from", "characters"],
    ["maxLength", "up to", "characters"],
    ["minimum", "from", ""],
    ["maximum", "up to", ""],
    ["maxItems", "up to", "items"],
  ].filter(([name]) => name in schema).map(([name, word, unit]) => `${word} ${schema[name]} ${unit}`.trim());
  const type = schema.type === "array" ? `array of ${described(schema.items) || "anything"}` : schema.type;
  const parts = [schema.format ? `${type}, ${schema.format}` : type || "anything", ...limits];
  if ("default" in schema) parts.push(`${JSON.stringify(schema.default)} by default`);
  return parts.join(", ");
}

function list(entries) {
  const found = made("dl");
  for (const [name, text] of entries) found.append(made("dt", name), made("dd", text));
  return found;
}

function fields(schema) {
  const needed = new Set(schema.required ?? []);
  return Object.entries(schema.properties ?? {}).map(([name, each]) => [
    needed.has(name) ? `${name} *` : name,
    described(each),
  ]);
}

function operation(method, path, told) {
  const shown = made("details");
  const summary = made("summary");
  summary.append(made("span", method.toUpperCase(), "method"), made("code", path), made("span", told.summary, "told"));
  shown.append(summary);
  if (told.parameters?.length) {
    shown.append(made("h3", "Parameters"));
    shown.append(list(told.parameters.map((each) => [
      each.required ? `${each.name} *` : each.name,
      [`in ${each.in}`, described(each.schema), each.description].filter(Boolean).join("; "),
    ])));
  }
  const body = told.requestBody?.content?.["application/json"]?.schema;
  if (body) shown.append(made("h3", "Body"), list(fields(body)));
  shown.append(made("h3", "Answers"));
  shown.append(list(Object.entries(told.responses).map(([status, each]) => {
    const schema = each.content?.["application/json"]?.schema;
    return [status, [each.description, described(schema)].filter(Boolean).join(": ")];
  })));
  return shown;
}

async function show() {
  const main = document.getElementById("operations");
  try {
    const answer = await fetch("/openapi.json");
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const api = await answer.json();
    document.getElementById("about").textContent = `${api.info.title} ${api.info.version}. ${api.info.description}`;
    const groups = new Map();
    for (const [path, methods] of Object.entries(api.paths)) {
      for (const method of METHODS.filter((each) => each in methods)) {
        const [tag] = methods[method].tags;
        if (!groups.has(tag)) groups.set(tag, []);
        groups.get(tag).push(operation(method, path, methods[method]));
      }
    }
    for (const [tag, found] of groups) {
      const section = made("section");
      const title = made("h2", tag);
      title.id = tag;
      section.append(title, ...found);
      main.append(section);
      const link = made("a", tag);
      link.href = `#${tag}`;
      document.getElementById("contents").append(link);
    }
    const schemas = made("section");
    schemas.append(made("h2", "schemas"));
    for (const [name, schema] of Object.entries(api.components.schemas)) {
      const shown = made("details");
      shown.append(made("summary", name), made("pre", JSON.stringify(schema, null, 2)));
      schemas.append(shown);
    }
    main.append(schemas);
  } catch (problem) {
    main.append(made("p", `/openapi.json can't be read: ${problem.message}`));
  }
}

await show();
