// postgres.js: it prepares each statement by itself and pipelines on its connections.
"use strict";
const assert = require("node:assert").strict;
const { readFileSync } = require("node:fs");
const { Readable } = require("node:stream");
const { pipeline } = require("node:stream/promises");
const postgres = require("postgres");
const { BIG, NUMERIC, UNICODE, fails, run, table, until, within } = require("./report");

const authority = process.env.PGSSLROOTCERT;
const tls = authority ? { ssl: { ca: readFileSync(authority) } } : {};

async function session(work, options = {}) {
  const sql = postgres({ max: 1, ...tls, ...options });
  try {
    return await work(sql);
  } finally {
    await sql.end({ timeout: 5 });
  }
}

const noted = (number) =>
  session(async (other) => (await other`SELECT id FROM ${other(table)} WHERE id = ${number} FOR SHARE`).count);

const only = (rows) => Object.values(rows[0])[0];

run(JSON.parse(readFileSync(`${__dirname}/node_modules/postgres/package.json`)).version, {
  connect: () => session(async (sql) => assert.equal(only(await sql`SELECT 1`), 1)),

  types: () =>
    session(async (sql) => {
      const moment = new Date("2026-01-02T03:04:05.678Z");
      const bytes = Buffer.from([0, 255, 39, 92]);
      assert.equal(only(await sql`SELECT ${2 ** 31 - 1}::integer`), 2 ** 31 - 1);
      assert.equal(only(await sql`SELECT ${"-9007199254740993"}::bigint`), "-9007199254740993");
      assert.equal(only(await sql`SELECT ${NUMERIC}::numeric`), NUMERIC);
      assert.equal(only(await sql`SELECT ${UNICODE}::text`), UNICODE);
      assert.deepEqual(only(await sql`SELECT ${bytes}::bytea`), bytes);
      assert.deepEqual(only(await sql`SELECT ${moment}::timestamptz`), moment);
      assert.deepEqual(only(await sql`SELECT ${sql.json({ a: [1, null] })}::jsonb`), { a: [1, null] });
      assert.deepEqual([...only(await sql`SELECT ${[1, 2, 3]}::integer[]`)], [1, 2, 3]);
      // Its own arrays know no NULL.
      const texts = ["a", "", 'with "quotes", {braces}'];
      assert.deepEqual([...only(await sql`SELECT ${texts}::text[]`)], texts);
      assert.equal(only(await sql`SELECT ${true}::boolean`), true);
      assert.equal(only(await sql`SELECT ${null}::text`), null);
    }),

  prepared: () =>
    session(async (sql) => {
      for (let number = 0; number < 20; number++) {
        assert.equal(only(await sql`SELECT ${number}::integer + 1`), number + 1);
        assert.equal(only(await sql`SELECT ${String(number)}::text || 'x'`), `${number}x`);
        await sql.begin(async (own) => assert.equal(only(await own`SELECT ${number}::integer + 1`), number + 1));
      }
    }),

  commit: () =>
    session(async (sql) => {
      await sql.begin((own) => own`INSERT INTO ${own(table)} VALUES (${100}, ${"kept"})`);
      assert.equal(await noted(100), 1);
    }),

  rollback: () =>
    session(async (sql) => {
      const given_up = sql.begin(async (own) => {
        await own`INSERT INTO ${own(table)} VALUES (${200}, ${"gone"})`;
        throw new Error("on purpose");
      });
      await assert.rejects(given_up, /on purpose/);
      assert.equal(await noted(200), 0);
    }),

  savepoint: () =>
    session(async (sql) => {
      await sql.begin(async (own) => {
        await own`INSERT INTO ${own(table)} VALUES (${300})`;
        await fails(own.savepoint((inner) => inner`INSERT INTO ${inner(table)} VALUES (${300})`), "23505");
        await own`INSERT INTO ${own(table)} VALUES (${301})`;
      });
      assert.equal((await noted(300)) + (await noted(301)), 2);
    }),

  error: () =>
    session(async (sql) => {
      for (let time = 0; time < 3; time++) {
        await fails(sql`SELECT 1/${0}::integer`, "22012");
        await fails(sql`SELEC 1`, "42601");
        assert.equal(only(await sql`SELECT 1`), 1);
      }
    }),

  error_in_transaction: () =>
    session(async (sql) => {
      for (let time = 0; time < 3; time++) {
        const failed = sql.begin(async (own) => {
          await fails(own`SELECT 1/${0}::integer`, "22012");
          await own`SELECT ${1}::integer`;
        });
        // What the transaction is left with: its first error, or what was refused after it.
        await assert.rejects(failed, (error) => ["22012", "25P02"].includes(error.code));
        assert.equal(only(await sql`SELECT 1`), 1);
      }
    }),

  copy_in: () =>
    session(async (sql) => {
      const sink = await sql`COPY ${sql(table)} (id, note) FROM STDIN`.writable();
      const rows = Array.from({ length: 10000 }, (_, number) => `${1000000 + number}\t${UNICODE}\n`);
      await pipeline(Readable.from(rows), sink);
      const count = await sql`SELECT count(*)::integer FROM ${sql(table)} WHERE id >= ${1000000}`;
      assert.equal(only(count), 10000);
    }),

  copy_out: () =>
    session(async (sql) => {
      let size = 0;
      const source = await sql`COPY (SELECT generate_series(10000, 19999)) TO STDOUT`.readable();
      for await (const chunk of source) size += chunk.length;
      assert.equal(size, 60000);
    }),

  cursor: () =>
    session(async (sql) => {
      let sum = 0;
      for await (const rows of sql`SELECT generate_series(1, ${10000}::integer) AS number`.cursor(100)) {
        sum += rows.reduce((total, row) => total + row.number, 0);
      }
      assert.equal(sum, 50005000);
    }),

  cancel: () =>
    session(async (sql) => {
      const query = sql`SELECT pg_sleep(30)`.execute();
      const stopped = fails(query, "57014");
      await new Promise((resolve) => setTimeout(resolve, 500));
      query.cancel();
      await stopped;
      assert.equal(only(await sql`SELECT 1`), 1);
    }),

  listen: () =>
    session(async (sql) => {
      const heard = [];
      let complete;
      const all = new Promise((resolve) => (complete = resolve));
      await sql.listen("postgres_js_news", (payload) => heard.push(payload) === 3 && complete());
      for (const number of ["0", "1", "2"]) await sql.notify("postgres_js_news", number);
      await within(all, 10);
      assert.deepEqual(heard, ["0", "1", "2"]);
    }),

  big_row: () =>
    session(async (sql) => assert.ok(only(await sql`SELECT ${BIG}::text`) === BIG, "another value")),

  batch: () =>
    session(async (sql) => {
      const sent = Array.from({ length: 100 }, (_, number) => sql`SELECT ${number}::integer AS number`);
      const results = await Promise.all(sent);
      assert.deepEqual(results.map(only), [...Array(100).keys()]);
    }),

  settings: () =>
    session((sql) =>
      session(async (other) => {
        await sql`SET work_mem = '7MB'`;
        for (let time = 0; time < 20; time++) {
          assert.equal(only(await sql`SHOW work_mem`), "7MB");
          assert.notEqual(only(await other`SHOW work_mem`), "7MB");
        }
      }),
    ),

  many_connections: () =>
    session(
      async (sql) => {
        const total = async () => only(await sql`SELECT number FROM ${sql(table)} WHERE id = 0 FOR SHARE`);
        const before = await total();
        const add = () => sql.begin((own) => own`UPDATE ${own(table)} SET number = number + 1 WHERE id = ${0}`);
        await Promise.all(Array.from({ length: 80 }, add));
        assert.equal((await total()) - before, 80);
      },
      { max: 8 },
    ),

  replica: () => session((sql) => until(async () => only(await sql`SELECT pg_is_in_recovery()`))),

  read_your_write: () =>
    session(async (sql) => {
      for (let number = 700; number < 750; number++) {
        await sql`INSERT INTO ${sql(table)} VALUES (${number})`;
        assert.equal(only(await sql`SELECT id FROM ${sql(table)} WHERE id = ${number}`), number);
      }
    }),
});
