<?php
// PDO's pgsql: it prepares on the server, under names of its own, and deallocates with SQL.
declare(strict_types=1);

const UNICODE = 'Grüße, 世界 🐘';
$table = getenv('DRIVER_TABLE');

function session(): PDO
{
    $dsn = sprintf('pgsql:host=%s;port=%s;dbname=%s', getenv('PGHOST'), getenv('PGPORT'), getenv('PGDATABASE'));
    return new PDO($dsn, getenv('PGUSER'), getenv('PGPASSWORD'), [PDO::ATTR_ERRMODE => PDO::ERRMODE_EXCEPTION]);
}

function equal(mixed $got, mixed $expected): void
{
    if ($got !== $expected) {
        throw new Exception(substr('got ' . var_export($got, true), 0, 200) . substr(', expected ' . var_export($expected, true), 0, 200));
    }
}

function value(PDO $session, string $sql, mixed ...$parameters): mixed
{
    $statement = $session->prepare($sql);
    $statement->execute($parameters);
    return $statement->fetchColumn();
}

function fails(string $sqlstate, callable $work): void
{
    try {
        $work();
    } catch (PDOException $error) {
        equal($error->getCode(), $sqlstate);
        return;
    }
    throw new Exception("it didn't fail with $sqlstate");
}

function noted(int $number): int
{
    global $table;
    $statement = session()->prepare("SELECT id FROM $table WHERE id = ? FOR SHARE");
    $statement->execute([$number]);
    return count($statement->fetchAll());
}

$checks = [
    'connect' => function () {
        $session = session();
        equal(value($session, 'SELECT 1'), 1);
        equal((int) $session->getAttribute(PDO::ATTR_SERVER_VERSION) >= 15, true);
    },
    'types' => function () {
        $session = session();
        $session->exec("SET timezone = 'UTC'");
        foreach ([
            ['integer', 2147483647],
            ['bigint', -9007199254740993],
            ['numeric', '12345678901234567890.0987654321'],
            ['text', UNICODE],
            ['timestamptz', '2026-01-02 03:04:05.678901+00'],
            ['jsonb', '{"a": [1, null]}'],
            ['integer[]', '{1,2,NULL}'],
            ['text[]', '{a,NULL,"with \"quotes\", {braces}"}'],
            ['date', null],
        ] as [$type, $one]) {
            equal(value($session, "SELECT ?::$type", $one), $one);
        }
        equal(value($session, 'SELECT ?::boolean', 'true'), true);
        $statement = $session->prepare('SELECT ?::bytea');
        $statement->bindValue(1, "\x00\xff'\\", PDO::PARAM_LOB);
        $statement->execute();
        equal(stream_get_contents($statement->fetchColumn()), "\x00\xff'\\");
    },
    'prepared' => function () {
        $session = session();
        $plus = $session->prepare('SELECT ?::integer + 1');
        $joined = $session->prepare("SELECT ?::text || 'x'");
        for ($number = 0; $number < 20; $number++) {
            if ($number % 3 == 0) $session->beginTransaction();
            $plus->execute([$number]);
            equal($plus->fetchColumn(), $number + 1);
            $joined->execute([(string) $number]);
            equal($joined->fetchColumn(), "{$number}x");
            // Prepared and deallocated each time.
            equal(value($session, 'SELECT ?::integer + 2', $number), $number + 2);
            if ($number % 3 == 0) $session->commit();
        }
    },
    'commit' => function () use ($table) {
        $session = session();
        $session->beginTransaction();
        $session->exec("INSERT INTO $table VALUES (100, 'kept')");
        $session->commit();
        equal(noted(100), 1);
    },
    'rollback' => function () use ($table) {
        $session = session();
        $session->beginTransaction();
        $session->exec("INSERT INTO $table VALUES (200, 'gone')");
        $session->rollBack();
        equal(noted(200), 0);
    },
    'savepoint' => function () use ($table) {
        $session = session();
        $session->beginTransaction();
        $session->exec("INSERT INTO $table VALUES (300)");
        $session->exec('SAVEPOINT here');
        fails('23505', fn() => $session->exec("INSERT INTO $table VALUES (300)"));
        $session->exec('ROLLBACK TO here');
        $session->exec("INSERT INTO $table VALUES (301)");
        $session->commit();
        equal(noted(300) + noted(301), 2);
    },
    'error' => function () {
        $session = session();
        for ($time = 0; $time < 3; $time++) {
            fails('22012', fn() => value($session, 'SELECT 1/?::integer', 0));
            fails('42601', fn() => value($session, 'SELEC 1'));
            equal(value($session, 'SELECT 1'), 1);
        }
    },
    'error_in_transaction' => function () {
        $session = session();
        for ($time = 0; $time < 3; $time++) {
            $session->beginTransaction();
            fails('22012', fn() => value($session, 'SELECT 1/?::integer', 0));
            fails('25P02', fn() => value($session, 'SELECT ?::integer', 1));
            $session->rollBack();
            equal(value($session, 'SELECT 1'), 1);
        }
    },
    'copy_in' => function () use ($table) {
        $session = session();
        $rows = array_map(fn($number) => (1000000 + $number) . "\t" . UNICODE, range(0, 9999));
        equal($session->pgsqlCopyFromArray($table, $rows, "\t", '\\\\N', 'id, note'), true);
        equal(value($session, "SELECT count(*) FROM $table WHERE id >= ?", 1000000), 10000);
    },
    'copy_out' => function () {
        $rows = session()->pgsqlCopyToArray('(SELECT generate_series(10000, 19999))');
        equal(strlen(implode($rows)), 60000);
    },
    'cursor' => function () {
        $session = session();
        $session->beginTransaction();
        $statement = $session->prepare(
            'SELECT generate_series(1, 10000)',
            [PDO::ATTR_CURSOR => PDO::CURSOR_SCROLL],
        );
        $statement->execute();
        $sum = 0;
        while (($one = $statement->fetchColumn()) !== false) $sum += $one;
        $statement->closeCursor();
        $session->commit();
        equal($sum, 50005000);
    },
    'listen' => function () {
        $listener = session();
        $sender = session();
        $listener->exec('LISTEN php_news');
        foreach (['0', '1', '2'] as $number) value($sender, "SELECT pg_notify('php_news', ?)", $number);
        $heard = [];
        for ($time = 0; $time < 100 && count($heard) < 3; $time++) {
            $one = $listener->pgsqlGetNotify(PDO::FETCH_ASSOC, 100);
            if ($one) $heard[] = $one['payload'];
        }
        equal($heard, ['0', '1', '2']);
    },
    'big_row' => function () {
        $big = str_repeat('0123456789abcdef', 4 * 1024 * 1024 / 16);
        equal(value(session(), 'SELECT ?::text', $big), $big);
    },
    // It has no pipeline: a string of statements is its batch.
    'batch' => function () use ($table) {
        $session = session();
        $insert = fn($number) => "INSERT INTO $table (id) VALUES ($number)";
        $session->exec(implode('; ', array_map($insert, range(500, 599))));
        equal(value($session, "SELECT count(*) FROM $table WHERE id BETWEEN ? AND ?", 500, 599), 100);
    },
    'settings' => function () {
        $session = session();
        $other = session();
        $session->exec("SET work_mem = '7MB'");
        for ($time = 0; $time < 20; $time++) {
            equal(value($session, 'SHOW work_mem'), '7MB');
            equal(value($other, 'SHOW work_mem') === '7MB', false);
        }
    },
    // Without threads: eight sessions in turn.
    'many_connections' => function () use ($table) {
        $total = "SELECT number FROM $table WHERE id = 0 FOR SHARE";
        $before = value(session(), $total);
        $sessions = array_map(fn() => session(), range(1, 8));
        for ($time = 0; $time < 10; $time++) {
            foreach ($sessions as $one) {
                $one->prepare("UPDATE $table SET number = number + 1 WHERE id = ?")->execute([0]);
            }
        }
        equal(value(session(), $total) - $before, 80);
    },
    'replica' => function () {
        $session = session();
        $deadline = microtime(true) + 10;
        while (!value($session, 'SELECT pg_is_in_recovery()')) {
            equal(microtime(true) < $deadline, true);
            usleep(50000);
        }
    },
    'read_your_write' => function () use ($table) {
        $session = session();
        for ($number = 700; $number < 750; $number++) {
            $session->prepare("INSERT INTO $table VALUES (?)")->execute([$number]);
            equal(value($session, "SELECT id FROM $table WHERE id = ?", $number), $number);
        }
    },
];

echo json_encode(['version' => PHP_VERSION]), "\n";
foreach ($checks as $check => $work) {
    $detail = '';
    try {
        $work();
    } catch (Throwable $error) {
        $detail = substr(get_class($error) . ': ' . $error->getMessage() . ' line ' . $error->getLine(), 0, 600);
    }
    echo json_encode(['check' => $check, 'ok' => $detail === '', 'detail' => $detail], JSON_INVALID_UTF8_SUBSTITUTE), "\n";
}
