// What the programs for Node.js share.
"use strict";
const assert = require("node:assert").strict;

const checks = process.env.DRIVER_CHECKS.split(" ");

exports.table = process.env.DRIVER_TABLE;
exports.UNICODE = "Grüße, 世界 🐘";
exports.NUMERIC = "12345678901234567890.0987654321";
exports.BIG = "0123456789abcdef".repeat((4 * 1024 * 1024) / 16);

const say = (line) => process.stdout.write(JSON.stringify(line) + "\n");

const within = (promise, seconds) => {
  let timer;
  const late = new Promise((_, reject) => {
    timer = setTimeout(() => reject(new Error(`not within ${seconds} s`)), seconds * 1000);
  });
  return Promise.race([promise, late]).finally(() => clearTimeout(timer));
};
exports.within = within;

// Prints the version, then does the checks of `program` in their order and prints what came of each.
exports.run = async (version, program) => {
  say({ version });
  for (const check of checks.filter((name) => program[name])) {
    try {
      await within(program[check](), 30);
      say({ check, ok: true, detail: "" });
    } catch (error) {
      say({ check, ok: false, detail: String(error.stack || error).slice(0, 600) });
    }
  }
};

exports.until = async (question, seconds = 10) => {
  const deadline = Date.now() + seconds * 1000;
  while (!(await question())) {
    assert.ok(Date.now() < deadline, `not within ${seconds} s`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
};

exports.fails = (work, code) => assert.rejects(work, (error) => (assert.equal(error.code, code), true));
