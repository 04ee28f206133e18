// Typical work of an application with postgres.js, which prepares every statement. Arguments: port, number of clients.

import assert from 'node:assert/strict'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'

import postgres from 'postgres'

const [port, clients] = process.argv.slice(2).map(Number)
const where = { host: '127.0.0.1', port, user: 'app', password: 'app-secret', database: 'p0', onnotice() {} }
const fails = (promise, code) => assert.rejects(promise, { code })

async function types(sql) {
  // array types are looked up by the first query
  await sql`SELECT 1`
  const at = new Date(1e12)
  const [row] = await sql`SELECT ${1}::int AS i, ${'9007199254740993'}::int8 AS l, ${1.5}::float8 AS f, ${'ä\u{1F418}'} AS t, ${true}::bool AS b,
    ${null}::text AS z, ${Buffer.from([0, 255])}::bytea AS y, ${at}::timestamptz AS d, ${sql.json({ a: [1] })} AS j, ${sql.array([1, 2])}::int[] AS a`
  assert.deepEqual({ ...row }, { i: 1, l: '9007199254740993', f: 1.5, t: 'ä\u{1F418}', b: true, z: null, y: Buffer.from([0, 255]), d: at, j: { a: [1] }, a: [1, 2] })
}

async function statements(sql, number) {
  for (let turn = 0; turn < 8; turn++) {
    assert.equal((await sql`SELECT ${number}::int * 1000 + ${turn}::int AS n`)[0].n, number * 1000 + turn)
    assert.equal((await sql`SELECT ${`${number}`}::text AS t`)[0].t, `${number}`)
  }
  assert.equal((await sql.unsafe('SELECT 1 AS n; SELECT 2 AS n')).length, 2)
  const described = await sql`SELECT ${1}::int AS n, 'x' AS t`.describe()
  assert.deepEqual(described.columns.map(({ name }) => name), ['n', 't'])
}

async function transactions(sql, number) {
  const count = async (sql) => (await sql`SELECT count(*)::int AS n FROM driver_work WHERE client = ${number} AND n = 1000`)[0].n
  await assert.rejects(sql.begin(async (sql) => {
    await sql`INSERT INTO driver_work ${sql({ client: number, n: 1000, t: 'for a moment' })}`
    await fails(sql.savepoint((sql) => sql`INSERT INTO driver_work VALUES (${number}, 1000, 'twice')`), '23505')
    assert.equal(await count(sql), 1)
    throw new Error('changed my mind')
  }), { message: 'changed my mind' })
  assert.equal(await count(sql), 0)
  await fails(sql.begin('ISOLATION LEVEL SERIALIZABLE READ ONLY', (sql) => sql`DELETE FROM driver_work`), '25006')
  const together = await sql.begin((sql) => [sql`SELECT 1 AS n`, sql`SELECT ${number}::int AS n`])
  assert.deepEqual(together.map(([{ n }]) => n), [1, number])
}

async function errors(sql) {
  for (let turn = 0; turn < 3; turn++) {
    await fails(sql`SELECT 1 / ${0}::int`, '22012')
    await fails(sql`SELECT * FROM no_such_table`, '42P01')
    assert.equal((await sql`SELECT 10 / ${5}::int AS n`)[0].n, 2)
  }
}

async function pipelined(sql, number) {
  const asked = Array.from({ length: 60 }, (_, n) => (n % 10 === 9
    ? sql`SELECT 1 / ${0}::int AS n`.then(() => 'no error', ({ code }) => code)
    : sql`SELECT ${number}::int + ${n}::int AS n`.then(([row]) => row.n)))
  assert.deepEqual(await Promise.all(asked), Array.from({ length: 60 }, (_, n) => (n % 10 === 9 ? '22012' : number + n)))
}

async function cursors(sql) {
  let sum = 0
  for await (const rows of sql`SELECT generate_series(1, ${1000}::int) AS n`.cursor(150)) sum += rows.reduce((s, { n }) => s + n, 0)
  assert.equal(sum, 500500)
  for await (const [row] of sql`SELECT generate_series(1, 1000) AS n`.cursor(10)) {
    assert.equal(row.n, 1)
    break
  }
  let seen = 0
  await sql`SELECT generate_series(1, 500) AS n`.forEach(() => { seen += 1 })
  assert.equal(seen, 500)
}

async function copy(sql, number) {
  const rows = Array.from({ length: 100 }, (_, n) => `${number}\t${n}\t${number}-${n}\n`)
  await sql`DELETE FROM driver_work WHERE client = ${number}`
  await pipeline(Readable.from(rows), await sql`COPY driver_work FROM STDIN`.writable())
  const out = await sql`COPY (SELECT * FROM driver_work WHERE client = ${sql.unsafe(String(number))} ORDER BY n) TO STDOUT`.readable()
  const chunks = []
  for await (const chunk of out) chunks.push(chunk)
  assert.equal(Buffer.concat(chunks).toString(), rows.join(''))
}

async function cancel(sql, number) {
  const query = sql`SELECT pg_sleep(30), ${number}::int`
  const ended = query.then(() => 'no error', ({ code }) => code)
  const watcher = postgres({ ...where, max: 1 })
  while (!(await watcher`SELECT count(*)::int AS n FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(30), $%' AND state = 'active'`)[0].n) {
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
  query.cancel()
  assert.equal(await ended, '57014')
  await watcher.end()
  assert.equal((await sql`SELECT ${number}::int AS n`)[0].n, number)
}

await Promise.all(Array.from({ length: clients }, async (_, number) => {
  const sql = postgres({ ...where, max: 1 })
  for (const step of [types, statements, transactions, errors, pipelined, cursors, copy]) await step(sql, number)
  await sql.end()
}))
const pool = postgres({ ...where, max: clients })
await cancel(pool, 0)
const answers = await Promise.all(Array.from({ length: 300 }, async (_, n) => (await pool`SELECT ${n}::int AS n`)[0].n))
assert.deepEqual(answers, Array.from({ length: 300 }, (_, n) => n))
const tagged = await pool.reserve()
assert.equal((await tagged`SELECT 1 AS n`)[0].n, 1)
tagged.release()
await pool.end()
console.log('done')
