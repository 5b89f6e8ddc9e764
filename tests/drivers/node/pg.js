// node-postgres: unnamed statements with parameters, named ones, and its pool.
"use strict";
const assert = require("node:assert").strict;
const { once } = require("node:events");
const { Readable } = require("node:stream");
const { pipeline } = require("node:stream/promises");
const { Client, Pool } = require("pg");
const Cursor = require("pg-cursor");
const copying = require("pg-copy-streams");
const { BIG, NUMERIC, UNICODE, fails, run, table, until, within } = require("./report");

async function session(work) {
  const client = new Client();
  await client.connect();
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

const value = async (client, text, values) =>
  (await client.query({ text, values, rowMode: "array" })).rows[0][0];

const noted = (number) =>
  session(async (other) => (await other.query(`SELECT id FROM ${table} WHERE id = $1 FOR SHARE`, [number])).rowCount);

run(require("pg/package.json").version, {
  connect: () => session(async (client) => assert.equal(await value(client, "SELECT 1"), 1)),

  types: () =>
    session(async (client) => {
      const moment = new Date("2026-01-02T03:04:05.678Z");
      for (const [type, one, back = one] of [
        ["integer", 2 ** 31 - 1],
        ["bigint", "-9007199254740993"],
        ["numeric", NUMERIC],
        ["text", UNICODE],
        ["bytea", Buffer.from([0, 255, 39, 92])],
        ["timestamptz", moment],
        ["jsonb", { a: [1, null] }],
        ["integer[]", [1, 2, null]],
        ["text[]", ["a", null, 'with "quotes", {braces}']],
        ["boolean", true],
        ["text", null],
      ]) {
        assert.deepEqual(await value(client, `SELECT $1::${type}`, [one]), back);
      }
    }),

  prepared: () =>
    session(async (client) => {
      const plus = (number) => ({ name: "plus", text: "SELECT $1::integer + 1 AS sum", values: [number] });
      for (let number = 0; number < 20; number++) {
        assert.equal((await client.query(plus(number))).rows[0].sum, number + 1);
        const other = { name: "s", text: "SELECT $1::text || 'x' AS joined", values: [String(number)] };
        assert.equal((await client.query(other)).rows[0].joined, `${number}x`);
        await client.query("BEGIN");
        assert.equal((await client.query(plus(number))).rows[0].sum, number + 1);
        await client.query("COMMIT");
      }
    }),

  commit: () =>
    session(async (client) => {
      await client.query("BEGIN");
      await client.query(`INSERT INTO ${table} VALUES ($1, $2)`, [100, "kept"]);
      await client.query("COMMIT");
      assert.equal(await noted(100), 1);
    }),

  rollback: () =>
    session(async (client) => {
      await client.query("BEGIN");
      await client.query(`INSERT INTO ${table} VALUES ($1, $2)`, [200, "gone"]);
      await client.query("ROLLBACK");
      assert.equal(await noted(200), 0);
    }),

  savepoint: () =>
    session(async (client) => {
      await client.query("BEGIN");
      await client.query(`INSERT INTO ${table} VALUES (300)`);
      await client.query("SAVEPOINT here");
      await fails(client.query(`INSERT INTO ${table} VALUES (300)`), "23505");
      await client.query("ROLLBACK TO here");
      await client.query(`INSERT INTO ${table} VALUES (301)`);
      await client.query("COMMIT");
      assert.equal((await noted(300)) + (await noted(301)), 2);
    }),

  error: () =>
    session(async (client) => {
      for (let time = 0; time < 3; time++) {
        await fails(client.query("SELECT 1/$1::integer", [0]), "22012");
        await fails(client.query("SELEC 1"), "42601");
        assert.equal(await value(client, "SELECT 1"), 1);
      }
    }),

  error_in_transaction: () =>
    session(async (client) => {
      for (let time = 0; time < 3; time++) {
        await client.query("BEGIN");
        await fails(client.query("SELECT 1/0"), "22012");
        await fails(client.query("SELECT $1::integer", [1]), "25P02");
        await client.query("ROLLBACK");
        assert.equal(await value(client, "SELECT 1"), 1);
      }
    }),

  copy_in: () =>
    session(async (client) => {
      const sink = client.query(copying.from(`COPY ${table} (id, note) FROM STDIN`));
      const rows = Array.from({ length: 10000 }, (_, number) => `${1000000 + number}\t${UNICODE}\n`);
      await pipeline(Readable.from(rows), sink);
      assert.equal(sink.rowCount, 10000);
    }),

  copy_out: () =>
    session(async (client) => {
      let size = 0;
      for await (const chunk of client.query(copying.to("COPY (SELECT generate_series(10000, 19999)) TO STDOUT"))) {
        size += chunk.length;
      }
      assert.equal(size, 60000);
    }),

  cursor: () =>
    session(async (client) => {
      const cursor = client.query(new Cursor("SELECT generate_series(1, $1::integer) AS number", [10000]));
      let sum = 0;
      for (let rows; (rows = await cursor.read(100)).length > 0; ) {
        sum += rows.reduce((total, row) => total + row.number, 0);
      }
      assert.equal(sum, 50005000);
      await cursor.close();
    }),

  cancel: () =>
    session(async (client) => {
      const stopped = fails(client.query("SELECT pg_sleep(30)"), "57014");
      await new Promise((resolve) => setTimeout(resolve, 500));
      // node-postgres has the request itself, on a connection that isn't a client yet.
      const { Connection } = require("pg");
      const ssl = process.env.PGSSLROOTCERT !== undefined;
      const connection = new Connection({ ssl });
      connection.connect(Number(process.env.PGPORT), process.env.PGHOST);
      await once(connection, "connect");
      if (ssl) {
        connection.requestSsl();
        await once(connection, "sslconnect");
      }
      connection.cancel(client.processID, client.secretKey);
      await within(once(connection, "end"), 10);
      await stopped;
      assert.equal(await value(client, "SELECT 1"), 1);
    }),

  listen: () =>
    session((listener) =>
      session(async (sender) => {
        const heard = [];
        const all = new Promise((resolve) =>
          listener.on("notification", (message) => heard.push(message.payload) === 3 && resolve()),
        );
        await listener.query("LISTEN node_pg_news");
        for (const number of ["0", "1", "2"]) await sender.query("SELECT pg_notify('node_pg_news', $1)", [number]);
        await within(all, 10);
        assert.deepEqual(heard, ["0", "1", "2"]);
      }),
    ),

  big_row: () =>
    session(async (client) => assert.ok((await value(client, "SELECT $1::text", [BIG])) === BIG, "another value")),

  // It has no pipeline: a string of statements is its batch.
  batch: () =>
    session(async (client) => {
      const text = Array.from({ length: 100 }, (_, number) => `SELECT ${number} AS number`).join("; ");
      const results = await client.query(text);
      assert.deepEqual(results.map((result) => result.rows[0].number), [...Array(100).keys()]);
    }),

  settings: () =>
    session((client) =>
      session(async (other) => {
        await client.query("SET work_mem = '7MB'");
        for (let time = 0; time < 20; time++) {
          assert.equal(await value(client, "SHOW work_mem"), "7MB");
          assert.notEqual(await value(other, "SHOW work_mem"), "7MB");
        }
      }),
    ),

  many_connections: async () => {
    const pool = new Pool({ max: 8 });
    const total = () => value(pool, `SELECT number FROM ${table} WHERE id = 0 FOR SHARE`);
    const before = await total();
    const add = async () => {
      const client = await pool.connect();
      await client.query("BEGIN");
      await client.query(`UPDATE ${table} SET number = number + 1 WHERE id = $1`, [0]);
      await client.query("COMMIT");
      client.release();
    };
    await Promise.all(Array.from({ length: 80 }, add));
    assert.equal((await total()) - before, 80);
    await pool.end();
  },

  replica: () => session((client) => until(() => value(client, "SELECT pg_is_in_recovery()"))),

  read_your_write: () =>
    session(async (client) => {
      for (let number = 700; number < 750; number++) {
        await client.query(`INSERT INTO ${table} VALUES ($1)`, [number]);
        assert.equal(await value(client, `SELECT id FROM ${table} WHERE id = $1`, [number]), number);
      }
    }),
});
